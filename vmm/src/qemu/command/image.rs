//! The guest image, by descriptor: its path may hold anything, and QEMU has no more access to it than the descriptor.

use std::borrow::Cow;
use std::os::fd::RawFd;

use super::{ImageEnd, Line};
use crate::device::{Blockdev, Device, Object};
use crate::spec::{Boot, Extension, ImageDriver};

const ID: &str = "image0";
const SET: u32 = 1;

pub(super) fn image(line: &mut Line, boot: &Boot, end: Option<ImageEnd>) {
    let (Boot::Image { driver, .. }, Some(ImageEnd { fd, size })) = (boot, end) else { return };
    if *driver == ImageDriver::VirtioBlk {
        disk(line, "disk0".into(), ID.into(), fd, SET);
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

/// After the guest image, which the guest expects to be its first disk.
pub(super) fn extensions(line: &mut Line, extensions: &[Extension], fds: &[RawFd]) {
    for ((extension, fd), set) in extensions.iter().zip(fds).zip(SET + 1..) {
        let name = &extension.name;
        disk(line, format!("disk-{name}").into(), format!("extension-{name}").into(), *fd, set);
    }
}

/// A disk that the guest cannot write to, and its serial number.
fn disk(line: &mut Line, id: Cow<'static, str>, serial: Cow<'static, str>, fd: RawFd, set: u32) {
    line.option("-add-fd", format!("fd={fd},set={set}"));
    line.json("-blockdev", &Blockdev::read_only_image(serial.clone(), set));
    line.device(&Device::VirtioBlkPci {
        id,
        drive: serial.clone(),
        config_wce: false,
        share_rw: true,
        serial,
        sectors: None,
        queues: None,
        place: None,
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
