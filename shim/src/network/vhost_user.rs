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

/// The socket for an interface, if there is one.
///
/// # Errors
/// Why nobody should have a guest's memory who may listen there.
pub(super) fn socket_for(found: &Found) -> Result<Option<PathBuf>, String> {
    for address in &found.addresses {
        let directory = Path::new(DIRECTORY).join(format!("vhostuser_{}", address.ip));
        let socket = directory.join(SOCKET);
        match fs::symlink_metadata(&socket) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Err(format!("{}: {error}", socket.display())),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(format!("{} is no socket", socket.display()));
            }
            Ok(_) => return is_roots(&directory).map(|()| Some(socket)),
        }
    }
    Ok(None)
}

/// Anybody may make directories where these are, and who listens reads and writes all of the guest's memory.
fn is_roots(directory: &Path) -> Result<(), String> {
    let shown = directory.display();
    let metadata = fs::symlink_metadata(directory).map_err(|error| format!("{shown}: {error}"))?;
    if metadata.is_dir() && metadata.uid() == 0 && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(format!(
        "{shown} has to be a directory that root alone may write to, as who listens there has all of the guest's memory"
    ))
}
