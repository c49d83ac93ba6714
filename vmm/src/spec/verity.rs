//! File systems whose every block the guest's kernel checks before it is used.

use std::fmt::{self, Write};
use std::path::PathBuf;

use super::ExtensionName;

/// What a device of dm-verity is checked by. Data are on the first partition, and what they are checked against on the
/// second, without a header. See the kernel's "dm-verity" document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verity {
    /// The SHA-256 that all the others are behind.
    pub root_hash: Vec<u8>,
    /// What goes into each hash first; may be empty.
    pub salt: Vec<u8>,
    /// Blocks of data.
    pub data_blocks: u64,
    /// Bytes in each of them, a power of two.
    pub data_block_size: u32,
    /// Bytes in a block of hashes, likewise.
    pub hash_block_size: u32,
}

/// What the kernel's tables and file systems count in.
const SECTOR: u64 = 512;

impl Verity {
    /// The word that has the kernel make the device of these two partitions, as `/dev/dm-0`. See its "Early creation
    /// of mapped devices" document.
    pub(crate) fn at_boot(&self, data: &str, hashes: &str) -> String {
        let sectors = self.data_blocks.saturating_mul(self.data_block_size.into()) / SECTOR;
        let Verity { data_blocks, data_block_size, hash_block_size, .. } = self;
        let (root_hash, salt) = (hex(&self.root_hash), hex(&self.salt));
        let salt = if salt.is_empty() { "-" } else { &salt };
        format!(
            "dm-mod.create=\"root,,,ro,0 {sectors} verity 1 {data} {hashes} {data_block_size} {hash_block_size} \
             {data_blocks} 0 sha256 {root_hash} {salt}\""
        )
    }
}

/// As the guest's own programs read it.
impl fmt::Display for Verity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verity { data_blocks, data_block_size, hash_block_size, .. } = self;
        let (root_hash, salt) = (hex(&self.root_hash), hex(&self.salt));
        write!(
            out,
            "root_hash={root_hash},salt={salt},data_blocks={data_blocks},data_block_size={data_block_size},\
             hash_block_size={hash_block_size}"
        )
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot go wrong.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An image that adds programs to a guest of Kata 4, which finds it by the serial number `extension-<name>` and mounts
/// its first partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// What the guest knows it by; short enough for the serial number of a disk.
    pub name: ExtensionName,
    /// The image, raw.
    pub path: PathBuf,
    /// What it is checked by, if it is.
    pub verity: Option<Verity>,
}
