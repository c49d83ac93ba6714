//! The directory of one machine, reached by descriptor: a socket's address has room for 107 bytes of path, and the
//! directory's own path may be longer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// An open run directory.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    dir: File,
}

impl RunDir {
    pub(crate) fn open(path: &Path) -> io::Result<RunDir> {
        let mut options = OpenOptions::new();
        let dir = options
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(path)?;
        Ok(RunDir { path: path.to_owned(), dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` that fits into a socket's address, good while this value lives.
    pub(crate) fn short(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd()))
    }

    /// Removes `name` when the result is dropped; it need not exist, then or now.
    pub(crate) fn remove_later(&self, name: &str) -> RemoveLater {
        RemoveLater(self.path.join(name))
    }
}

/// Removes a file when dropped.
#[derive(Debug)]
pub(crate) struct RemoveLater(PathBuf);

impl RemoveLater {
    /// Removes the file now.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Drop for RemoveLater {
    fn drop(&mut self) {
        self.remove();
    }
}
