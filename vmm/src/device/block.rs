//! What is behind a disk: `-blockdev`.

use std::borrow::Cow;
use std::path::Path;

use serde::Serialize;

use crate::spec::Access;

/// A node of QEMU's block layer. The format is always spelt out: guessing it from content a guest may have written
/// would let the guest name any file of the host as its disk's backing file.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub(crate) enum Blockdev {
    /// Bytes as they are.
    Raw {
        node_name: Cow<'static, str>,
        read_only: bool,
        /// Holds for the file as well.
        #[serde(skip_serializing_if = "Option::is_none")]
        cache: Option<NodeCache>,
        file: File,
    },
}

/// What is done with the host's page cache.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NodeCache {
    direct: bool,
    no_flush: bool,
}

/// Where the bytes are.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename_all = "snake_case")]
pub(crate) enum File {
    /// A regular file.
    File {
        filename: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        aio: Option<&'static str>,
    },
    /// A block device.
    HostDevice { filename: String, aio: &'static str },
}

impl Blockdev {
    /// A raw file that nothing changes.
    pub(crate) fn read_only_file(node_name: &'static str, path: &Path) -> Blockdev {
        Blockdev::unchanged(node_name, path.to_string_lossy().into_owned())
    }

    /// A raw image in the set of descriptors number `set`, which the guest cannot write to.
    pub(crate) fn read_only_image(node_name: impl Into<Cow<'static, str>>, set: u32) -> Blockdev {
        Blockdev::unchanged(node_name, fd_set(set))
    }

    fn unchanged(node_name: impl Into<Cow<'static, str>>, filename: String) -> Blockdev {
        let file = File::File { filename, aio: None };
        Blockdev::Raw { node_name: node_name.into(), read_only: true, cache: None, file }
    }

    /// The block device, or else the raw image, in the set of descriptors number `set`.
    pub(crate) fn host_disk(
        node_name: String,
        set: u32,
        is_device: bool,
        read_only: bool,
        access: Access,
    ) -> Blockdev {
        let (filename, aio) = (fd_set(set), access.aio());
        let file = if is_device {
            File::HostDevice { filename, aio }
        } else {
            File::File { filename, aio: Some(aio) }
        };
        let cache = access.cache().map(|cache| NodeCache { direct: cache.direct, no_flush: cache.no_flush });
        Blockdev::Raw { node_name: node_name.into(), read_only, cache, file }
    }
}

fn fd_set(number: u32) -> String {
    format!("/dev/fdset/{number}")
}
