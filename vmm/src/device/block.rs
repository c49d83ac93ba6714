//! What is behind a disk: `-blockdev`.

use std::path::Path;

use serde::Serialize;

/// A node of QEMU's block layer. The format is always spelt out: guessing it from content a guest may have written
/// would let the guest name any file of the host as its disk's backing file.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub(crate) enum Blockdev {
    /// Bytes as they are.
    Raw { node_name: &'static str, read_only: bool, file: File },
}

/// Where the bytes are.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub(crate) enum File {
    /// A regular file.
    File { filename: String },
}

impl Blockdev {
    /// A raw file that nothing changes.
    pub(crate) fn read_only_file(node_name: &'static str, path: &Path) -> Blockdev {
        let filename = path.to_string_lossy().into_owned();
        Blockdev::Raw { node_name, read_only: true, file: File::File { filename } }
    }

    /// A raw image in the set of descriptors number `set`, which the guest cannot write to.
    pub(crate) fn read_only_image(node_name: &'static str, set: u32) -> Blockdev {
        Blockdev::Raw {
            node_name,
            read_only: true,
            file: File::File { filename: format!("/dev/fdset/{set}") },
        }
    }
}
