//! The guest image, by descriptor: its path may hold anything, and QEMU has no more access to it than the descriptor.

use super::{ImageEnd, Line};
use crate::device::{Blockdev, Device, Object};
use crate::spec::{Boot, ImageDriver};

const ID: &str = "image0";

pub(super) fn image(line: &mut Line, boot: &Boot, end: Option<ImageEnd>) {
    let (Boot::Image { driver, .. }, Some(ImageEnd { fd, size })) = (boot, end) else { return };
    if *driver == ImageDriver::VirtioBlk {
        line.option("-add-fd", format!("fd={fd},set=1"));
        line.json("-blockdev", &Blockdev::read_only_image(ID, 1));
        line.device(&Device::VirtioBlkPci {
            id: "disk0".into(),
            drive: ID.into(),
            config_wce: false,
            share_rw: true,
            serial: ID.into(),
            sectors: None,
            queues: None,
            place: None,
        });
        return;
    }
    // Sets of descriptors are known to the block layer alone.
    let mem_path = format!("/proc/self/fd/{fd}");
    line.object(&Object::File { id: ID.into(), size, mem_path, share: true, readonly: true });
    line.device(&match driver {
        ImageDriver::VirtioPmem => Device::VirtioPmemPci { id: "pmem0", memdev: ID },
        _ => Device::Nvdimm { id: "nvdimm0".into(), memdev: ID.into(), unarmed: true },
    });
}

/// The slots for memory and the address space, in MiB, that the image takes.
pub(super) fn room(boot: &Boot, end: Option<ImageEnd>) -> (u32, u64) {
    let (Boot::Image { driver, .. }, Some(ImageEnd { size, .. })) = (boot, end) else { return (0, 0) };
    match driver {
        ImageDriver::VirtioBlk => (0, 0),
        ImageDriver::Nvdimm => (1, size.div_ceil(1 << 20)),
        ImageDriver::VirtioPmem => (0, size.div_ceil(1 << 20)),
    }
}
