//! What a machine is made of, in QEMU's terms.
//!
//! Each value serialises to the one JSON object that QEMU takes for it, on the command line (`-device`, `-object`,
//! `-blockdev`) as well as at run time (`device_add`, `object-add`, `blockdev-add`). Two things have no JSON form on
//! the command line of QEMU 7 to 10 and are written as options: character devices and 9p's file systems.

mod block;
mod chardev;
mod net;
mod pci;

pub(crate) use block::Blockdev;
pub(crate) use chardev::{Chardev, Fsdev};
pub(crate) use net::Netdev;
pub(crate) use pci::Device;

use std::borrow::Cow;

use serde::Serialize;

use crate::spec::Backing;

/// Something without a place on a bus: `-object`.
#[derive(Debug, Serialize)]
#[serde(tag = "qom-type", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub(crate) enum Object {
    /// Memory that other processes can map: a vhost-user daemon reads and writes it.
    MemoryBackendMemfd {
        id: Cow<'static, str>,
        /// Bytes.
        size: u64,
        share: bool,
        /// In huge pages.
        #[serde(skip_serializing_if = "is_off")]
        hugetlb: bool,
        #[serde(skip_serializing_if = "is_off")]
        prealloc: bool,
    },
    /// The same in a file that QEMU makes in the directory `mem_path`.
    MemoryBackendFile {
        id: Cow<'static, str>,
        /// Bytes.
        size: u64,
        mem_path: String,
        share: bool,
        #[serde(skip_serializing_if = "is_off")]
        prealloc: bool,
    },
    /// A source of random numbers.
    RngRandom { id: &'static str, filename: String },
}

impl Object {
    /// `size` bytes of memory from where `backing` has it.
    pub(crate) fn memory(id: Cow<'static, str>, size: u64, backing: &Backing, prealloc: bool) -> Object {
        let share = true;
        match backing {
            Backing::Directory(directory) => {
                let mem_path = directory.to_string_lossy().into_owned();
                Object::MemoryBackendFile { id, size, mem_path, share, prealloc }
            }
            backing => {
                let hugetlb = *backing == Backing::HugePages;
                Object::MemoryBackendMemfd { id, size, share, hugetlb, prealloc }
            }
        }
    }
}

fn is_off(switch: &bool) -> bool {
    !switch
}
