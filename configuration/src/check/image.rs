//! What is in the guest from the start.

use std::path::PathBuf;

use super::Checker;
use crate::choice::MachineType;
use crate::hypervisor::{ExtensionImage, ImageDriver, Rootfs};
use crate::program;
use crate::raw::RawHypervisor;
use crate::verity::Verity;

const INITRD: &str = "hypervisor.qemu.initrd";
const IMAGE: &str = "hypervisor.qemu.image";
const DRIVER: &str = "hypervisor.qemu.vm_rootfs_driver";
const VERITY: &str = "hypervisor.qemu.kernel_verity_params";
const EXTENSIONS: &str = "hypervisor.qemu.guest_extension_images";

impl Checker<'_> {
    /// Exactly one of `initrd` and `image`. An empty string counts as absent: a drop-in cannot remove a key.
    pub(super) fn rootfs(&mut self, raw: &RawHypervisor, memory_mib: u32) -> Option<Rootfs> {
        let given = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        if !self.sound(&[INITRD, IMAGE]) {
            return None;
        }
        match (given(&raw.initrd), given(&raw.image)) {
            (Some(initrd), None) => {
                let size = self.note(INITRD, program::content(&initrd))?;
                let fits = self.fits_memory(INITRD, size, memory_mib);
                self.note(INITRD, fits);
                if !raw.kernel_verity_params.trim().is_empty() {
                    let what = "has no effect with an initrd, which has no blocks to check";
                    self.warning(VERITY, what.to_owned());
                }
                Some(Rootfs::Initrd(initrd))
            }
            (None, Some(path)) => {
                let size = self.note(IMAGE, program::content(&path))?;
                if let Err(what) = self.fits_memory(IMAGE, size, memory_mib) {
                    self.warning(IMAGE, what);
                }
                let verity = self.verity(raw);
                let driver = self.image_driver(raw)?;
                Some(Rootfs::Image { path, fs_type: raw.rootfs_type, driver, verity })
            }
            (Some(_), Some(_)) => {
                self.problem(
                    INITRD,
                    "set together with hypervisor.qemu.image; set exactly one of the two".to_owned(),
                );
                None
            }
            (None, None) => {
                let what = "neither this nor hypervisor.qemu.image is set; set exactly one of the two";
                self.problem(INITRD, what.to_owned());
                None
            }
        }
    }

    fn verity(&mut self, raw: &RawHypervisor) -> Option<Verity> {
        let text = raw.kernel_verity_params.trim();
        (!text.is_empty()).then(|| self.note(VERITY, Verity::parse(text))).flatten()
    }

    /// Kata's Go runtime has the one key, its Rust runtime the other.
    fn image_driver(&mut self, raw: &RawHypervisor) -> Option<ImageDriver> {
        // The board without PCI has no memory but its own; and what the host provides is no protected memory.
        let only_disks = raw.machine_type == MachineType::Microvm || raw.confidential_guest;
        let is_disk = raw.disable_image_nvdimm || only_disks;
        let what = match (raw.vm_rootfs_driver.as_str(), is_disk) {
            ("", true) | ("virtio-blk" | "virtio-blk-pci", _) => return Some(ImageDriver::VirtioBlk),
            ("", false) | ("nvdimm", false) => return Some(ImageDriver::Nvdimm),
            ("virtio-pmem", _) => return Some(ImageDriver::VirtioPmem),
            ("nvdimm", true) => {
                "nvdimm, but disable_image_nvdimm, machine_type or confidential_guest rules that out; use virtio-blk".to_owned()
            }
            (word @ "virtio-blk-mmio", _) => format!("{word:?} is for machines without PCI; use virtio-blk"),
            (word @ "virtio-blk-ccw", _) => format!("{word:?} is for s390x; use virtio-blk"),
            (word, _) => format!("{word:?} is unknown; use nvdimm, virtio-pmem or virtio-blk"),
        };
        self.problem(DRIVER, what);
        None
    }

    pub(super) fn extension_images(&mut self, raw: &RawHypervisor) -> Vec<ExtensionImage> {
        let images: Vec<_> = raw
            .guest_extension_images
            .iter()
            .filter_map(|table| self.note(EXTENSIONS, extension(table)))
            .collect();
        for (at, image) in images.iter().enumerate() {
            if images[..at].iter().any(|other| other.name == image.name) {
                self.problem(EXTENSIONS, format!("two of them are called {:?}; rename one", image.name));
            }
        }
        images
    }
}

fn extension(table: &toml::Table) -> Result<ExtensionImage, String> {
    let text = |key: &str| match table.get(key) {
        Some(toml::Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("{key} is not a string")),
        None => Ok(""),
    };
    if let Some(key) = table.keys().find(|key| !["name", "path", "verity_params"].contains(&key.as_str())) {
        return Err(format!("{key:?} is unknown; each of them has name, path and verity_params"));
    }
    let name = text("name")?.to_owned();
    let in_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !(1..=10).contains(&name.len()) || !name.bytes().all(in_word) {
        return Err(format!(
            "name is {name:?}; set 1 to 10 letters, digits, '-', '_' and '.', as it becomes a disk's serial number"
        ));
    }
    let path = PathBuf::from(text("path")?);
    program::content(&path).map_err(|what| format!("{name}: path: {what}"))?;
    let parameters = text("verity_params")?.trim();
    let verity = (!parameters.is_empty()).then(|| Verity::parse(parameters)).transpose();
    let verity = verity.map_err(|what| format!("{name}: verity_params: {what}"))?;
    Ok(ExtensionImage { name, path, verity })
}
