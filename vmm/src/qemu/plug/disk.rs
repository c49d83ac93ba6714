//! Disks: a descriptor, a block node on it, a device on that.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;

use super::places::BusAddress;
use super::{Board, Held, places};
use crate::device::{Blockdev, Device};
use crate::error::QmpError;
use crate::plug::{DeviceId, Disk, DiskBus, PlugError, ScsiAddress};
use crate::qemu::qmp::{AddFd, BlockdevAdd, BlockdevDel, DeviceAdd, RemoveFd};

/// Sets of descriptors below this number are those of the command line.
const FIRST_SET: u32 = 16;

impl Board {
    pub(super) async fn plug_disk(&self, id: &DeviceId, disk: &Disk) -> Result<Held, PlugError> {
        let at = match disk.bus {
            DiskBus::VirtioBlk => BusAddress::Pci(places::pci(self.bridges, &self.taken())?),
            DiskBus::Scsi => BusAddress::Scsi(places::scsi(&self.taken())?),
        };
        let (file, is_device) = open(disk)?;
        let set = self.free_set();
        self.qmp.execute_with(AddFd { fdset_id: set }, OwnedFd::from(file)).await?;
        match self.add_disk(id, disk, is_device, set, at).await {
            Ok(()) => Ok(Held::Disk { at, set }),
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
        let node = Blockdev::host_disk(id.0.clone(), set, disk.read_only, is_device);
        self.qmp.execute(BlockdevAdd(node)).await?;
        self.qmp.execute(DeviceAdd(device(id, at))).await.map(drop)
    }

    /// Takes away what was behind a disk.
    pub(super) async fn forget_disk(&self, id: &DeviceId, set: u32) -> Result<(), QmpError> {
        let node = self.qmp.execute(BlockdevDel { node_name: id.0.clone() }).await;
        let fd = self.qmp.execute(RemoveFd { fdset_id: set }).await;
        node.and(fd).map(drop)
    }

    fn free_set(&self) -> u32 {
        let taken = |set: &u32| {
            self.devices.values().any(|held| matches!(held, Held::Disk { set: used, .. } if used == set))
        };
        (FIRST_SET..).find(|set| !taken(set)).unwrap_or(FIRST_SET)
    }
}

/// QEMU gets the descriptor only: what a path leads to may change, and QEMU may not be allowed to follow it.
fn open(disk: &Disk) -> Result<(File, bool), PlugError> {
    let refused = |source| PlugError::Open { path: disk.path.clone(), source };
    let file = OpenOptions::new().read(true).write(!disk.read_only).open(&disk.path).map_err(refused)?;
    let kind = file.metadata().map_err(refused)?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(PlugError::NotADisk { path: disk.path.clone() });
    }
    Ok((file, kind.is_block_device()))
}

/// The block node has the same name as the device.
fn device(id: &DeviceId, at: BusAddress) -> Device {
    let id = id.0.clone();
    match at {
        BusAddress::Pci(address) => Device::VirtioBlkPci {
            id: id.clone().into(),
            drive: id.clone().into(),
            config_wce: false,
            share_rw: true,
            serial: id.into(),
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
        },
    }
}
