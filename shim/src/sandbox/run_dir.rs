//! The directory of one sandbox on the host: `/run/kata/<namespace>/<sandbox id>`, for root alone.
//!
//! It is the working directory of every process of the sandbox's machine, which keeps their socket names short
//! (the kernel takes 107 bytes) and lets [`crate::cleanup`] find what a dead shim left running.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::{
    error::{Error, Result},
    network,
};

/// Where the sandboxes of this host have their directories.
const ROOT: &str = "/run/kata";
/// Among them, no namespace of containerd's: those of machines that have no sandbox yet.
const READY: &str = ".ready";
/// How deep the shared tree goes: `share/mounts/<container>/rootfs`.
const DEEPEST: usize = 4;

/// Where the directory of a sandbox is, made or not. Both names must have passed [`crate::ids::check`].
pub(crate) fn path_of(namespace: &str, sandbox: &str) -> PathBuf {
    Path::new(ROOT).join(namespace).join(sandbox)
}

/// Where machines that have no sandbox yet have theirs, each by the number of its shim's process.
pub(crate) fn ready() -> PathBuf {
    Path::new(ROOT).join(READY)
}

/// An existing run directory; dropped, it is removed.
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    /// Makes the directory.
    ///
    /// # Errors
    /// `AlreadyExists` when a sandbox of this name has one.
    pub(crate) fn create(path: PathBuf) -> Result<RunDir> {
        make_parent(&path)?;
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| not_had(&path, error))?;
        Ok(RunDir(path))
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// `AlreadyExists` when a sandbox of that name has one; it has its old name then.
    pub(crate) fn rename(&mut self, path: PathBuf) -> Result<()> {
        make_parent(&path)?;
        renameat2(AT_FDCWD, &self.0, AT_FDCWD, &path, RenameFlags::RENAME_NOREPLACE)
            .map_err(|error| not_had(&path, error.into()))?;
        let before = std::mem::replace(&mut self.0, path);
        // Not empty while others are there.
        let _ = before.parent().map(fs::remove_dir);
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(parent).map_err(Error::io(parent.display()))
}

fn not_had(path: &Path, error: std::io::Error) -> Error {
    if error.kind() != ErrorKind::AlreadyExists {
        return Error::io(path.display())(error);
    }
    Error::AlreadyExists(format!(
        "{}: a sandbox of this name is running, or left it behind: `containerd-shim-kata-v2 -namespace NS -id \
         ID delete` clears it up",
        path.display()
    ))
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // Nobody is left to tell; `delete` tries again.
        let _ = remove(&self.0);
    }
}

/// Removes a run directory whose mounts are gone, and its namespace's when that is empty then.
///
/// All of it stays while devices of the host are not given back: what is in it says which, and to whom.
/// Only what the shim itself makes goes: files directly in it, and below them empty files and directories, which is
/// what mount points are. A mount that is still there, and whatever is in it, stays.
///
/// # Errors
/// The first thing that could not be removed; everything else was tried.
pub(crate) fn remove(path: &Path) -> std::io::Result<()> {
    if let Some(devices) = network::outstanding(path) {
        let text = format!(
            "kept, as it says which drivers these go back to: {devices}; `delete` of the sandbox tries that again"
        );
        return Err(std::io::Error::other(text));
    }
    let outcome = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => remove_tree(path, DEEPEST),
    };
    if let Some(parent) = path.parent() {
        // Not empty while other sandboxes of the namespace live.
        let _ = fs::remove_dir(parent);
    }
    outcome
}

fn remove_tree(dir: &Path, depth: usize) -> std::io::Result<()> {
    let mut outcome = Ok(());
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let removed = if !metadata.is_dir() {
            if depth < DEEPEST && metadata.is_file() && metadata.len() > 0 {
                Err(std::io::Error::other(format!("{}: not empty, left alone", entry.path().display())))
            } else {
                fs::remove_file(entry.path())
            }
        } else if depth > 0 {
            remove_tree(&entry.path(), depth - 1)
        } else {
            fs::remove_dir(entry.path())
        };
        outcome = outcome.and(removed);
    }
    outcome.and(fs::remove_dir(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_is_private_unique_and_goes_with_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ns/sandbox");
        let dir = RunDir::create(path.clone()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(RunDir::create(path.clone()), Err(Error::AlreadyExists(_))));
        std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap();
        fs::create_dir_all(path.join("share/mounts/c1/rootfs")).unwrap();
        drop(dir);
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }

    #[test]
    fn what_is_not_the_shims_own_is_never_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ns/sandbox");
        let volume = path.join("share/mounts/c1/rootfs/data");
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("precious"), "data").unwrap();
        assert!(remove(&path).is_err());
        assert_eq!(fs::read_to_string(volume.join("precious")).unwrap(), "data");
    }
}
