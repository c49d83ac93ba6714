//! Disks: a descriptor, a block node on it, a device on that.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use super::places::BusAddress;
use super::{Board, Held, places};
use crate::device::{Blockdev, Device, DiskQueues, SectorSizes};
use crate::error::QmpError;
use crate::plug::{DeviceId, Disk, DiskBus, PlugError, ScsiAddress};
use crate::qemu::qmp::{AddFd, BlockResize, BlockdevAdd, BlockdevDel, PresentedAdd, RemoveFd};
use crate::spec::BlockDriver;

/// Sets of descriptors below this number are those of the command line.
const FIRST_SET: u32 = 64;
/// What gives a machine one.
const CONTROLLER: &str = "set block_device_driver to virtio-scsi";

impl Board {
    pub(super) async fn plug_disk(&self, id: &DeviceId, disk: &Disk) -> Result<Held, PlugError> {
        let at = match disk.bus {
            DiskBus::VirtioBlk => BusAddress::Pci(self.free_slot()?),
            DiskBus::Scsi if self.block.driver != BlockDriver::VirtioScsi => {
                return Err(PlugError::NotTaken { what: "SCSI disks", remedy: CONTROLLER });
            }
            DiskBus::Scsi => BusAddress::Scsi(places::scsi(&self.taken())?),
        };
        let direct = self.block.options.access().cache().is_some_and(|cache| cache.direct);
        let (file, is_device) = open(disk, direct)?;
        let set = self.free_set();
        let given = file.try_clone().map_err(|source| PlugError::Open { path: disk.path.clone(), source })?;
        self.qmp.execute_with(AddFd { fdset_id: set }, OwnedFd::from(given)).await?;
        match self.add_disk(id, disk, is_device, set, at).await {
            Ok(()) => Ok(Held::Disk { at, set, file }),
            Err(error) => {
                // The device's own error is the one worth telling; what is not there is not missed.
                let _ = self.forget_disk(id, set).await;
                Err(error.into())
            }
        }
    }

    async fn add_disk(
        &self,
        id: &DeviceId,
        disk: &Disk,
        is_device: bool,
        set: u32,
        at: BusAddress,
    ) -> Result<(), QmpError> {
        let access = self.block.options.access();
        let node = Blockdev::host_disk(id.0.clone(), set, is_device, disk.read_only, access);
        self.qmp.execute(BlockdevAdd(node)).await?;
        let device = self.disk_device(id, at);
        self.qmp.execute(PresentedAdd(device.presented(self.virtio))).await.map(drop)
    }

    /// Has the guest see the size that a disk has by now.
    ///
    /// QEMU changes the length of an image to what it is told. So that is never somebody's wish, but what is there.
    pub(super) async fn resize_disk(&self, id: &DeviceId) -> Result<u64, PlugError> {
        let Some(Held::Disk { file, .. }) = self.devices.get(id) else {
            return Err(PlugError::Unknown(id.clone()));
        };
        let size = size_of(file).map_err(|source| PlugError::Size { disk: id.clone(), source })?;
        self.qmp.execute(BlockResize { node_name: id.0.clone(), size }).await?;
        Ok(size)
    }

    /// Takes away what was behind a disk.
    pub(super) async fn forget_disk(&self, id: &DeviceId, set: u32) -> Result<(), QmpError> {
        let node = self.qmp.execute(BlockdevDel { node_name: id.0.clone() }).await;
        let fd = self.qmp.execute(RemoveFd { fdset_id: set }).await;
        node.and(fd).map(drop)
    }

    /// The block node has the same name as the device.
    fn disk_device(&self, id: &DeviceId, at: BusAddress) -> Device {
        let sectors = self.block.options.sectors();
        let sectors =
            SectorSizes { logical_block_size: sectors.logical(), physical_block_size: sectors.physical() };
        let id = id.0.clone();
        match at {
            BusAddress::Pci(address) => Device::VirtioBlkPci {
                id: id.clone().into(),
                drive: id.clone().into(),
                config_wce: false,
                share_rw: true,
                serial: id.into(),
                sectors: Some(sectors),
                queues: Some(self.queues()),
                place: Some(address.into()),
            },
            BusAddress::Scsi(ScsiAddress { target, lun }) => Device::ScsiHd {
                id: id.clone(),
                bus: "scsi0.0",
                target,
                lun,
                drive: id.clone(),
                share_rw: true,
                serial: id,
                sectors,
            },
        }
    }

    /// The threads, if there are any, take turns.
    fn queues(&self) -> DiskQueues {
        let queues = self.block.options.queues();
        let mut threads: Vec<_> = self.block.threads.independent().collect();
        let turn = usize::try_from(self.named).unwrap_or_default() % threads.len().max(1);
        let iothread = (turn < threads.len()).then(|| threads.swap_remove(turn));
        DiskQueues { num_queues: queues.count(), queue_size: queues.size(), iothread }
    }

    fn free_set(&self) -> u32 {
        let taken = |set: &u32| {
            self.devices.values().any(|held| matches!(held, Held::Disk { set: used, .. } if used == set))
        };
        (FIRST_SET..).find(|set| !taken(set)).unwrap_or(FIRST_SET)
    }
}

/// QEMU gets the descriptor only: what a path leads to may change, and QEMU may not be allowed to follow it.
///
/// It takes one only that is past the host's page cache where it is to go past it.
fn open(disk: &Disk, direct: bool) -> Result<(File, bool), PlugError> {
    let refused = |source| PlugError::Open { path: disk.path.clone(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(!disk.read_only).custom_flags(if direct { libc::O_DIRECT } else { 0 });
    let file = options.open(&disk.path).map_err(refused)?;
    let kind = file.metadata().map_err(refused)?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(PlugError::NotADisk { path: disk.path.clone() });
    }
    Ok((file, kind.is_block_device()))
}

/// Block devices have no size in their metadata; their end can be gone to. QEMU shares the position, and never uses it.
fn size_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}
