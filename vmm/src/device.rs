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
pub(crate) use chardev::{Chardev, ChardevBackend, Dialled, Fsdev};
pub(crate) use net::Netdev;
pub(crate) use pci::{Device, DiskQueues, PciPlace, Presented, SectorSizes};

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
        #[serde(flatten)]
        near: Option<Near>,
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
        #[serde(flatten)]
        near: Option<Near>,
    },
    /// A file as it is. `share`: what the guest writes to it is written to the file.
    #[serde(rename = "memory-backend-file")]
    File {
        id: Cow<'static, str>,
        /// Bytes.
        size: u64,
        mem_path: String,
        share: bool,
        readonly: bool,
    },
    /// A thread for devices to do their work on.
    Iothread { id: String },
    /// Memory of SGX enclaves.
    MemoryBackendEpc { id: &'static str, size: u64, prealloc: bool },
    /// Intel's protection.
    TdxGuest {
        id: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        quote_generation_socket: Option<Quotes>,
    },
    /// AMD's first and second one.
    SevGuest { id: &'static str, cbitpos: u8, reduced_phys_bits: u8, policy: u32 },
    /// AMD's third one. `kernel_hashes`: kernel, initrd and command line are measured with the firmware.
    SevSnpGuest {
        id: &'static str,
        cbitpos: u8,
        reduced_phys_bits: u8,
        policy: u64,
        kernel_hashes: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        id_block: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        id_auth: Option<String>,
    },
    /// A source of random numbers.
    RngRandom { id: &'static str, filename: String },
}

/// Which nodes of the host memory comes from, and from no other.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Near {
    host_nodes: Vec<u32>,
    policy: &'static str,
}

impl Near {
    pub(crate) fn to(host_nodes: Vec<u32>) -> Near {
        Near { host_nodes, policy: "bind" }
    }
}

/// Where TDX quotes are made; QEMU takes the numbers as text.
#[derive(Debug, Serialize)]
pub(crate) struct Quotes {
    r#type: &'static str,
    cid: &'static str,
    port: String,
}

impl Quotes {
    /// At a port of this host's vsock.
    pub(crate) fn at(port: u32) -> Quotes {
        // VMADDR_CID_HOST of linux/vm_sockets.h.
        Quotes { r#type: "vsock", cid: "2", port: port.to_string() }
    }
}

impl Object {
    /// `size` bytes of memory from where `backing` has it.
    pub(crate) fn memory(id: Cow<'static, str>, size: u64, backing: &Backing, prealloc: bool) -> Object {
        Object::memory_near(id, size, backing, prealloc, None)
    }

    /// The same from some nodes of the host.
    pub(crate) fn memory_near(
        id: Cow<'static, str>,
        size: u64,
        backing: &Backing,
        prealloc: bool,
        near: Option<Near>,
    ) -> Object {
        let share = true;
        match backing {
            Backing::Directory(directory) => {
                let mem_path = directory.to_string_lossy().into_owned();
                Object::MemoryBackendFile { id, size, mem_path, share, prealloc, near }
            }
            backing => {
                let hugetlb = *backing == Backing::HugePages;
                Object::MemoryBackendMemfd { id, size, share, hugetlb, prealloc, near }
            }
        }
    }
}

fn is_off(switch: &bool) -> bool {
    !switch
}
