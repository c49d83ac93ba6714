//! What is behind a disk: `-blockdev`.

use std::borrow::Cow;
use std::path::Path;

use serde::Serialize;

/// A node of QEMU's block layer. The format is always spelt out: guessing it from content a guest may have written
/// would let the guest name any file of the host as its disk's backing file.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub(crate) enum Blockdev {
    /// Bytes as they are.
    Raw { node_name: Cow<'static, str>, read_only: bool, file: File },
}

/// Where the bytes are.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename_all = "snake_case")]
pub(crate) enum File {
    /// A regular file.
    File { filename: String },
    /// A block device.
    HostDevice { filename: String },
}

impl Blockdev {
    /// A raw file that nothing changes.
    pub(crate) fn read_only_file(node_name: &'static str, path: &Path) -> Blockdev {
        let filename = path.to_string_lossy().into_owned();
        Blockdev::Raw { node_name: node_name.into(), read_only: true, file: File::File { filename } }
    }

    /// A raw image in the set of descriptors number `set`, which the guest cannot write to.
    pub(crate) fn read_only_image(node_name: &'static str, set: u32) -> Blockdev {
        Blockdev::Raw {
            node_name: node_name.into(),
            read_only: true,
            file: File::File { filename: fd_set(set) },
        }
    }

    /// The block device, or else the raw image, in the set of descriptors number `set`.
    pub(crate) fn host_disk(node_name: String, set: u32, read_only: bool, is_device: bool) -> Blockdev {
        let filename = fd_set(set);
        let file = if is_device { File::HostDevice { filename } } else { File::File { filename } };
        Blockdev::Raw { node_name: node_name.into(), read_only, file }
    }
}

fn fd_set(number: u32) -> String {
    format!("/dev/fdset/{number}")
}
