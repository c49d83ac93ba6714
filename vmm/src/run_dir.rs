//! The directory of one machine, reached by descriptor: a socket's address has room for 107 bytes of path, and the
//! directory's own path may be longer. It may also be renamed while the machine runs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open run directory.
#[derive(Debug)]
pub(crate) struct RunDir {
    /// Where it was when it was opened.
    path: PathBuf,
    dir: Arc<File>,
}

impl RunDir {
    pub(crate) fn open(path: &Path) -> io::Result<RunDir> {
        let mut options = OpenOptions::new();
        let dir = options
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(path)?;
        Ok(RunDir { path: path.to_owned(), dir: Arc::new(dir) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` that fits into a socket's address, good while this value lives.
    pub(crate) fn short(&self, name: &str) -> PathBuf {
        place(&self.dir, name)
    }

    /// Removes `name` when the result is dropped; it need not exist, then or now.
    pub(crate) fn remove_later(&self, name: &str) -> RemoveLater {
        RemoveLater { dir: self.dir.clone(), name: name.to_owned() }
    }
}

fn place(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Removes a file when dropped.
#[derive(Debug)]
pub(crate) struct RemoveLater {
    dir: Arc<File>,
    name: String,
}

impl RemoveLater {
    /// Removes the file now.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(place(&self.dir, &self.name));
    }
}

impl Drop for RemoveLater {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_that_is_renamed_is_still_the_machines() {
        let dir = tempfile::tempdir().unwrap();
        let (before, after) = (dir.path().join("before"), dir.path().join("after"));
        fs::create_dir(&before).unwrap();
        let run_dir = RunDir::open(&before).unwrap();
        let leftover = run_dir.remove_later("file");
        fs::rename(&before, &after).unwrap();
        fs::write(run_dir.short("file"), "x").unwrap();
        assert!(after.join("file").exists());
        drop(leftover);
        assert!(!after.join("file").exists());
    }
}
