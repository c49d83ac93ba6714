//! What is in the guest from the start.

use configuration::{FsType, Hypervisor, Rootfs};
use vmm::spec::{Boot, Extension, ExtensionName, ImageDriver, ImageFs, Verity};

use super::unusable;
use crate::error::Result;

pub(super) fn boot_of(rootfs: &Rootfs) -> Boot {
    match rootfs {
        Rootfs::Initrd(path) => Boot::Initrd(path.clone()),
        Rootfs::Image { path, fs_type, driver, verity } => {
            let fs = match fs_type {
                FsType::Ext4 => ImageFs::Ext4,
                FsType::Xfs => ImageFs::Xfs,
                FsType::Erofs => ImageFs::Erofs,
            };
            let driver = match driver {
                configuration::ImageDriver::Nvdimm => ImageDriver::Nvdimm,
                configuration::ImageDriver::VirtioPmem => ImageDriver::VirtioPmem,
                configuration::ImageDriver::VirtioBlk => ImageDriver::VirtioBlk,
            };
            Boot::Image { path: path.clone(), fs, driver, verity: verity.as_ref().map(verity_of) }
        }
    }
}

/// # Errors
/// `InvalidArgument` for a name that no disk's serial number has room for.
pub(super) fn extensions_of(hypervisor: &Hypervisor) -> Result<Vec<Extension>> {
    let extension = |image: &configuration::ExtensionImage| {
        Ok(Extension {
            name: ExtensionName::new(&image.name).map_err(unusable("guest_extension_images"))?,
            path: image.path.clone(),
            verity: image.verity.as_ref().map(verity_of),
        })
    };
    hypervisor.extension_images.iter().map(extension).collect()
}

fn verity_of(verity: &configuration::Verity) -> Verity {
    Verity {
        root_hash: verity.root_hash.clone(),
        salt: verity.salt.clone(),
        data_blocks: verity.data_blocks.get(),
        data_block_size: verity.data_block_size,
        hash_block_size: verity.hash_block_size,
    }
}
