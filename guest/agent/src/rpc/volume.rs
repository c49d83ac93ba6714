//! Volumes whose file systems the guest has mounted: how full they are, and that they grow with their disks.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Component, Path},
    time::Duration,
};

use agent_protocol::{
    agent::{ResizeVolumeRequest, VolumeStatsRequest},
    csi::{VolumeCondition, VolumeStatsResponse, VolumeUsage, volume_usage::Unit},
};
use nix::{
    errno::Errno,
    sys::{
        stat::{major, minor},
        statfs::{EXT4_SUPER_MAGIC, fstatfs},
        statvfs::statvfs,
    },
};
use protobuf::MessageField;
use tokio::time::{Instant, sleep};

use crate::{error::Error, reaper::Reaper, runtime::BUNDLES, worker};

nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);

/// What the kernel counts the size of a block device in.
const SECTOR: u64 = 512;
/// How long a disk may take to show its new size: the hypervisor tells the driver, which tells the block layer.
const GROWN: Duration = Duration::from_secs(10);
/// How long a file system may take to grow.
const GROWING: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(20);

fn checked(path: &str) -> Result<&Path, Error> {
    let path = Path::new(path);
    let plain = path.components().all(|part| !matches!(part, Component::ParentDir));
    if !plain || !path.starts_with(BUNDLES) {
        return Err(Error::invalid(format!("volume_guest_path: {path:?} is not below {BUNDLES}")));
    }
    Ok(path)
}

/// Space and inodes of the file system a volume is on.
pub(super) fn stats(request: &VolumeStatsRequest) -> Result<VolumeStatsResponse, Error> {
    let path = checked(&request.volume_guest_path)?;
    let stats = statvfs(path).map_err(Error::system(format!("look at {}", path.display())))?;
    let usage = |unit: Unit, size: u64, total: u64, free: u64, available: u64| VolumeUsage {
        unit: unit.into(),
        total: total.saturating_mul(size),
        available: available.saturating_mul(size),
        used: total.saturating_sub(free).saturating_mul(size),
        ..Default::default()
    };
    let bytes = usage(
        Unit::BYTES,
        stats.fragment_size(),
        stats.blocks(),
        stats.blocks_free(),
        stats.blocks_available(),
    );
    let inodes = usage(Unit::INODES, 1, stats.files(), stats.files_free(), stats.files_available());
    Ok(VolumeStatsResponse {
        usage: vec![bytes, inodes],
        volume_condition: MessageField::some(VolumeCondition::default()),
        ..Default::default()
    })
}

/// Has the file system of a volume grow to so many bytes, while it is in use.
pub(super) async fn resize(reaper: &Reaper, request: &ResizeVolumeRequest) -> Result<(), Error> {
    let path = checked(&request.volume_guest_path)?;
    let volume = File::open(path).map_err(Error::system(format!("open {}", path.display())))?;
    let kind = fstatfs(&volume).map_err(Error::system(format!("look at {}", path.display())))?;
    if kind.filesystem_type() != EXT4_SUPER_MAGIC {
        return Err(Error::Unimplemented("ResizeVolume of other file systems than ext2, ext3 and ext4"));
    }
    let block = u64::try_from(kind.block_size()).unwrap_or_default().max(SECTOR);
    disk_has_grown(&volume, request.size).await?;
    let (what, blocks) = (format!("grow {} to {} bytes", path.display(), request.size), request.size / block);
    // Takes its time on a large disk, and others are to be answered meanwhile.
    let job = || Ok(grow(&volume, blocks).err().map_or(0, |error| error as i32).to_string());
    let told = worker::run(reaper, &what, &[volume.as_raw_fd()], GROWING, job).await?.text;
    match told.parse().map(Errno::from_raw) {
        Ok(Errno::UnknownErrno) => Ok(()),
        Ok(Errno::EINVAL) => Err(Error::state(format!("{what}: it is larger already, or cannot grow"))),
        Ok(other) => Err(Error::system(what)(other)),
        Err(_) => Err(Error::Worker(format!("{what}: a worker told {told:?}"))),
    }
}

fn grow(volume: &File, blocks: u64) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, and the kernel reads one number.
    unsafe { ext4_resize(volume.as_raw_fd(), &raw const blocks) }.map(drop)
}

async fn disk_has_grown(volume: &File, size: u64) -> Result<(), Error> {
    let device = volume.metadata().map_err(Error::system("look at the volume"))?.dev();
    let file = format!("/sys/dev/block/{}:{}/size", major(device), minor(device));
    let deadline = Instant::now() + GROWN;
    loop {
        let sectors = fs::read_to_string(&file).map_err(Error::system(format!("read {file}")))?;
        let has = sectors.trim().parse::<u64>().unwrap_or_default().saturating_mul(SECTOR);
        if has >= size {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::state(format!("the volume's disk has {has} bytes, less than {size}")));
        }
        // The kernel tells whoever listens to uevents, which is more than one question in a volume's life is worth.
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_looked_for_in_the_share_only() {
        let request =
            |path: &str| VolumeStatsRequest { volume_guest_path: path.into(), ..Default::default() };
        for bad in ["/", "/etc", "/run/kata-containers/../../etc", "x"] {
            assert!(matches!(stats(&request(bad)), Err(Error::Invalid(_))), "{bad}");
        }
    }

    #[tokio::test]
    async fn only_what_is_on_a_disk_of_the_pods_can_grow() {
        let request =
            ResizeVolumeRequest { volume_guest_path: "/etc".into(), size: 1 << 30, ..Default::default() };
        assert!(matches!(resize(&Reaper::default(), &request).await, Err(Error::Invalid(_))));
    }
}
