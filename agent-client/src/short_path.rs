//! Socket paths of any length.
//!
//! The kernel takes at most 107 bytes of path (`sun_path`), which a run directory with a long namespace
//! and sandbox id can exceed. A path through `/proc/self/fd` to the directory is always short enough.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{self, OFlag},
    sys::stat::Mode,
};

/// A short name for a socket, good for as long as this value lives.
#[derive(Debug)]
pub(crate) struct ShortPath {
    directory: OwnedFd,
    name: PathBuf,
}

impl ShortPath {
    /// For the socket `path`, whose directory must exist.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = fcntl::open(directory, flags, Mode::empty())?;
        Ok(Self { directory, name: PathBuf::from(name) })
    }

    /// To be handed to the kernel, not to another process.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd())).join(&self.name)
    }
}
