//! Files, directories and links of the host's that the guest gets copies of.

use agent_protocol::agent::CopyFileRequest;
use ttrpc::context::Context;

use crate::{calls::ask, client::AgentClient, error::Error};

/// The most of a file that one call carries, in bytes. Agents of the field take no message of more than 4 MiB.
const PIECE: usize = 1 << 20;

/// What the directories have that the guest makes on the way to a copy.
const DIRECTORY: u32 = 0o755;

/// What the guest is to have.
#[derive(Debug, Clone, Copy)]
pub struct Copied<'a> {
    /// Where, below `/run/kata-containers`.
    pub path: &'a str,
    /// Type and permissions, as `st_mode` has them: a regular file, a directory or a symbolic link.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// What is in the file, or where the link leads.
    pub data: &'a [u8],
}

impl AgentClient {
    /// Writes it in the guest, with the directories that it is in. What has that name there is replaced.
    ///
    /// # Errors
    ///
    /// As for every call; a file that was to be replaced is as it was.
    pub async fn copy(&self, copied: Copied<'_>) -> Result<(), Error> {
        let size = copied.data.len();
        let mut offset = 0;
        // What is empty is a piece, too.
        loop {
            let end = size.min(offset + PIECE);
            let request = CopyFileRequest {
                path: copied.path.to_owned(),
                file_size: signed(size),
                file_mode: copied.mode,
                dir_mode: DIRECTORY,
                uid: copied.owner.0.cast_signed(),
                gid: copied.owner.1.cast_signed(),
                offset: signed(offset),
                data: copied.data[offset..end].to_vec(),
                ..Default::default()
            };
            ask!(self, "CopyFile", Some(self.timeouts.call), copy_file, request)?;
            if end == size {
                return Ok(());
            }
            offset = end;
        }
    }

    /// Writes a file of root's.
    ///
    /// # Errors
    ///
    /// As of [`Self::copy`].
    pub async fn copy_file(&self, path: &str, mode: u32, data: &[u8]) -> Result<(), Error> {
        self.copy(Copied { path, mode, owner: (0, 0), data }).await
    }
}

/// Nothing in memory is longer than this can say.
fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
