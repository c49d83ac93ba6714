//! Files that are memory of the guest: a descriptor, an object on it, an NVDIMM on that. A guest never lets go of one.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;

use serde_json::Value;

use super::{Board, Held, memory};
use crate::device::{Device, Object};
use crate::error::QmpError;
use crate::plug::{DeviceId, PlugError, Pmem};
use crate::qemu::qmp::{AddFd, DeviceAdd, ObjectAdd, ObjectDel, RemoveFd};
use crate::spec::{Boot, VmSpec};

/// The set of the descriptor while QEMU opens it, one that no disk has.
const SET: u32 = 63;

/// How many such devices the guest numbers before those that come; `None` where the board knows of none.
pub(super) fn booted(spec: &VmSpec) -> Option<u32> {
    let image = matches!(&spec.boot, Boot::Image { driver, .. } if driver.is_memory());
    spec.has_nvdimms().then_some(u32::from(image))
}

impl Board {
    pub(super) async fn plug_pmem(&self, id: &DeviceId, pmem: &Pmem) -> Result<Held, PlugError> {
        let number = self.next_pmem()?;
        let (file, size) = open(pmem)?;
        let memdev = format!("{id}-backend");
        if let Err(error) = self.add_nvdimm(id, &memdev, file, size, pmem.read_only).await {
            // The device's own error is the one worth telling; what is not there is not missed.
            let _ = self.qmp.execute(ObjectDel { id: memdev }).await;
            return Err(error.into());
        }
        Ok(Held::Pmem { number })
    }

    async fn add_nvdimm(
        &self,
        id: &DeviceId,
        memdev: &str,
        file: File,
        size: u64,
        unarmed: bool,
    ) -> Result<(), QmpError> {
        let (id, memdev) = (id.0.clone().into(), memdev.to_owned());
        self.add_backend(memdev.clone(), file, size, unarmed).await?;
        let device = Device::Nvdimm { id, memdev: memdev.into(), unarmed };
        self.qmp.execute(DeviceAdd(device)).await.map(drop)
    }

    /// How many have come, each to a slot for memory.
    pub(super) fn pmems(&self) -> usize {
        self.devices.values().filter(|held| matches!(held, Held::Pmem { .. })).count()
    }

    fn next_pmem(&self) -> Result<u32, PlugError> {
        let remedy = "set block_device_driver to nvdimm";
        let first = self.nvdimms.ok_or(PlugError::NotTaken { what: "memory that is a file", remedy })?;
        let plugged = self.pmems();
        if !self.memory.has_slot(plugged) {
            return Err(memory::FULL);
        }
        // There are at most 256 slots.
        Ok(first + plugged as u32)
    }

    /// Sets of descriptors are known to the block layer alone, so the object gets the descriptor by its number. It
    /// opens that for itself.
    async fn add_backend(&self, id: String, file: File, size: u64, readonly: bool) -> Result<(), QmpError> {
        let added = self.qmp.execute_with(AddFd { fdset_id: SET }, OwnedFd::from(file)).await?;
        let made = async {
            let fd = added.get("fd").and_then(Value::as_u64).ok_or_else(|| QmpError::Protocol {
                command: "add-fd".to_owned(),
                what: format!("no descriptor in {added}"),
            })?;
            let mem_path = format!("/proc/self/fd/{fd}");
            let object = Object::File { id: id.into(), size, mem_path, share: true, readonly };
            self.qmp.execute(ObjectAdd(object)).await
        };
        let made = made.await;
        let closed = self.qmp.execute(RemoveFd { fdset_id: SET }).await;
        made.and(closed).map(drop)
    }
}

/// The file and its size in bytes.
fn open(pmem: &Pmem) -> Result<(File, u64), PlugError> {
    let refused = |source| PlugError::Open { path: pmem.path.clone(), source };
    let opened = OpenOptions::new().read(true).write(!pmem.read_only).open(&pmem.path);
    let mut file = opened.map_err(refused)?;
    let kind = file.metadata().map_err(refused)?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(PlugError::NotADisk { path: pmem.path.clone() });
    }
    // A block device has no other size.
    let size = file.seek(SeekFrom::End(0)).map_err(refused)?;
    Ok((file, size))
}
