//! What is in the guest from the start.

use std::path::PathBuf;

use vmm::spec::{Boot, Extension, ExtensionName, ImageDriver, ImageFs, Verity};

use super::{Checker, is_given, text};
use crate::choice::{FsType, MachineType};
use crate::program;
use crate::raw::RawHypervisor;
use crate::verity;

const INITRD: &str = "hypervisor.qemu.initrd";
const IMAGE: &str = "hypervisor.qemu.image";
const DRIVER: &str = "hypervisor.qemu.vm_rootfs_driver";
const VERITY: &str = "hypervisor.qemu.kernel_verity_params";
/// Bytes that memory comes in.
const PAGE: u64 = 4096;
const NO_NVDIMM: &str = "hypervisor.qemu.disable_image_nvdimm";
const FS: &str = "hypervisor.qemu.rootfs_type";
/// Most extension images: boards without PCI have places for few more devices.
const MOST_EXTENSIONS: usize = 16;
const EXTENSIONS: &str = "hypervisor.qemu.guest_extension_images";

impl Checker<'_> {
    /// Exactly one of `initrd` and `image`. An empty string counts as absent: a drop-in cannot remove a key.
    pub(super) fn boot(&mut self, raw: &RawHypervisor, memory_mib: u32) -> Option<Boot> {
        let given = |path: &Option<PathBuf>| path.clone().filter(|path| is_given(path));
        let (initrd, image) = (given(&raw.initrd), given(&raw.image));
        // A value of the wrong type is told already, and may have been meant for an image.
        let (sound, has_image) = (self.sound(&[INITRD, IMAGE]), image.is_some() || !self.sound(&[IMAGE]));
        let which = match (&initrd, &image) {
            (Some(_), Some(_)) => Some("set together with"),
            (None, None) => Some("is not set, and neither is"),
            (Some(_), None) | (None, Some(_)) => None,
        };
        if let Some(which) = which.filter(|_| sound) {
            self.problem(INITRD, format!("{which} {IMAGE}; set exactly one of the two"));
        }
        let driver = self.image_driver(raw, has_image);
        let verity = if has_image { self.verity(raw) } else { None };
        if !has_image {
            self.only_for_images(raw);
        }
        let initrd = initrd.map(|path| self.initrd(path, memory_mib));
        let image = image.map(|path| self.image(raw, path, driver, verity, memory_mib));
        initrd.xor(image).flatten()
    }

    fn initrd(&mut self, initrd: PathBuf, memory_mib: u32) -> Option<Boot> {
        let size = self.note(INITRD, program::content(&initrd))?;
        let fits = self.unpacks(INITRD, size, memory_mib);
        self.note(INITRD, fits);
        Some(Boot::Initrd(initrd))
    }

    fn image(
        &mut self,
        raw: &RawHypervisor,
        path: PathBuf,
        driver: Option<ImageDriver>,
        verity: Option<Verity>,
        memory_mib: u32,
    ) -> Option<Boot> {
        let block = if driver.is_some_and(ImageDriver::is_memory) { PAGE } else { 1 };
        let size = self.note(IMAGE, program::blocks(&path, block))?;
        if let Err(what) = self.fits_memory(IMAGE, size, memory_mib) {
            self.warning(IMAGE, what);
        }
        let fs = match raw.rootfs_type {
            FsType::Ext4 => ImageFs::Ext4,
            FsType::Xfs => ImageFs::Xfs,
            FsType::Erofs => ImageFs::Erofs,
        };
        Some(Boot::Image { path, fs, driver: driver?, verity })
    }

    /// Warns of what is about an image where there is none.
    fn only_for_images(&mut self, raw: &RawHypervisor) {
        for (key, set) in [
            (VERITY, !raw.kernel_verity_params.trim().is_empty()),
            (DRIVER, !raw.vm_rootfs_driver.is_empty()),
            (FS, raw.rootfs_type != FsType::Ext4),
            (NO_NVDIMM, raw.disable_image_nvdimm),
        ] {
            if set {
                self.warning(key, "has no effect with an initrd, which is no image".to_owned());
            }
        }
    }

    fn verity(&mut self, raw: &RawHypervisor) -> Option<Verity> {
        let text = raw.kernel_verity_params.trim();
        (!text.is_empty()).then(|| self.note(VERITY, verity::parse(text))).flatten()
    }

    /// Kata's Go runtime has the one key, its Rust runtime the other.
    fn image_driver(&mut self, raw: &RawHypervisor, has_image: bool) -> Option<ImageDriver> {
        // The board without PCI has no memory but its own; and what the host provides is no protected memory.
        let only_disks = has_image && (raw.machine_type == MachineType::Microvm || raw.confidential_guest);
        let is_disk = has_image && raw.disable_image_nvdimm || only_disks;
        let what = match (raw.vm_rootfs_driver.as_str(), is_disk) {
            ("", true) | ("virtio-blk" | "virtio-blk-pci", _) => return Some(ImageDriver::VirtioBlk),
            ("", false) | ("nvdimm", false) => return Some(ImageDriver::Nvdimm),
            ("virtio-pmem", _) if !only_disks => return Some(ImageDriver::VirtioPmem),
            (word @ ("nvdimm" | "virtio-pmem"), _) => format!(
                "{word}, but disable_image_nvdimm, machine_type or confidential_guest rules that out; use virtio-blk"
            ),
            (word @ "virtio-blk-mmio", _) => format!("{word:?} is for machines without PCI; use virtio-blk"),
            (word @ "virtio-blk-ccw", _) => format!("{word:?} is for s390x; use virtio-blk"),
            (word, _) => format!("{word:?} is unknown; use nvdimm, virtio-pmem or virtio-blk"),
        };
        self.problem(DRIVER, what);
        None
    }

    pub(super) fn extension_images(&mut self, raw: &RawHypervisor) -> Vec<Extension> {
        let images = self.each(EXTENSIONS, raw.guest_extension_images.iter().map(extension));
        if raw.guest_extension_images.len() > MOST_EXTENSIONS {
            let count = raw.guest_extension_images.len();
            self.problem(
                EXTENSIONS,
                format!("{count} images are more than the {MOST_EXTENSIONS} there can be; take some away"),
            );
        }
        for (at, image) in images.iter().enumerate() {
            if images[..at].iter().any(|other| other.name == image.name) {
                let name = image.name.as_str();
                self.problem(EXTENSIONS, format!("two of them are called {name:?}; rename one"));
            }
        }
        images
    }
}

fn extension(table: &toml::Table) -> Result<Extension, String> {
    let string = |key: &str| match table.get(key) {
        Some(toml::Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("{key} is not a string")),
        None => Ok(""),
    };
    if let Some(key) = table.keys().find(|key| !["name", "path", "verity_params"].contains(&key.as_str())) {
        return Err(format!("{key:?} is unknown; each of them has name, path and verity_params"));
    }
    let name = string("name").and_then(|name| ExtensionName::new(name).map_err(text));
    let label = name.as_ref().map_or(String::new(), |name| format!("{name}: "));
    let path = string("path").map(PathBuf::from).and_then(|path| {
        let readable = program::content(&path).map(|_| path);
        readable.map_err(|what| format!("{label}path: {what}"))
    });
    let verity = string("verity_params").map(str::trim).and_then(|parameters| {
        let parsed = (!parameters.is_empty()).then(|| verity::parse(parameters)).transpose();
        parsed.map_err(|what| format!("{label}verity_params: {what}"))
    });
    match (name, path, verity) {
        (Ok(name), Ok(path), Ok(verity)) => Ok(Extension { name, path, verity }),
        (name, path, verity) => {
            let wrong = [name.err(), path.err(), verity.err()];
            Err(wrong.into_iter().flatten().collect::<Vec<_>>().join("; "))
        }
    }
}
