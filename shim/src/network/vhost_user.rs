//! An interface whose packets another program of the host's moves: it listens on a socket that is named after an address
//! of the interface, as Kata Containers has it.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::scan::Found;

/// Where the directories are.
const DIRECTORY: &str = "/tmp";
/// The socket in each.
const SOCKET: &str = "vhu.sock";

/// The socket for an interface, if there is one in a directory that root alone may write to. Anybody may make directories
/// where these are, and who listens reads and writes all of the guest's memory; so what is in others is no reason to use it,
/// nor one to refuse the pod.
///
/// # Errors
/// What root has there cannot be used.
pub(super) fn socket_for(found: &Found) -> Result<Option<PathBuf>, String> {
    for address in &found.addresses {
        let directory = Path::new(DIRECTORY).join(format!("vhostuser_{}", address.ip));
        if !is_roots(&directory) {
            continue;
        }
        let socket = directory.join(SOCKET);
        match fs::symlink_metadata(&socket) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", socket.display())),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(format!("{} is no socket", socket.display()));
            }
            Ok(_) => return Ok(Some(socket)),
        }
    }
    Ok(None)
}

fn is_roots(directory: &Path) -> bool {
    let metadata = fs::symlink_metadata(directory);
    metadata.is_ok_and(|it| it.is_dir() && it.uid() == 0 && it.mode() & 0o022 == 0)
}
