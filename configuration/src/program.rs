//! A program that may turn out to be needed.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::finding::{Finding, Origin};

/// A program that only some machines need, so it is checked when it is known to be needed.
///
/// Whether virtiofsd is started depends on the host's devices when `shared_fs` says `auto`, and an absent daemon
/// that nobody needs is no mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    key: &'static str,
    origin: Origin,
}

impl Program {
    /// The program at `path`, which `origin` chose by `key`; nothing is checked yet.
    #[must_use]
    pub const fn new(path: PathBuf, key: &'static str, origin: Origin) -> Self {
        Self { path, key, origin }
    }

    /// The program, if it is there and executable.
    ///
    /// # Errors
    ///
    /// A finding with origin and key, worded as if the configuration had been refused for it.
    pub fn usable(&self) -> Result<&Path, Finding> {
        match executable(&self.path) {
            Ok(()) => Ok(&self.path),
            Err(what) => Err(Finding::key(&self.origin, self.key, what)),
        }
    }

    /// The path as configured, not checked.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Checks that `path` is an executable regular file.
pub(crate) fn executable(path: &Path) -> Result<(), String> {
    let metadata = regular(path)?;
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(format!(
            "{} is not executable; make it so, or set the path of the program",
            path.display()
        ));
    }
    Ok(())
}

/// Checks that `path` is a regular file with something in it, and tells its size in bytes.
pub(crate) fn content(path: &Path) -> Result<u64, String> {
    match regular(path)?.len() {
        0 => Err(format!("{} is empty; set the path of a complete file", path.display())),
        size => Ok(size),
    }
}

/// The same for a file that QEMU maps or copies in blocks of so many bytes.
pub(crate) fn blocks(path: &Path, block: u64) -> Result<u64, String> {
    match content(path)? {
        // Not how big it is: a pod may have named it, and is not to learn that.
        size if size % block != 0 => Err(format!(
            "{} is no whole number of blocks of {block} bytes; set the path of a complete file",
            path.display()
        )),
        size => Ok(size),
    }
}

/// Checks that `path` is a directory.
pub(crate) fn directory(path: &Path) -> Result<(), String> {
    if metadata(path)?.is_dir() {
        return Ok(());
    }
    Err(format!("{} is not a directory; set the path of one", path.display()))
}

/// Checks that `path` can be a source of random numbers: a device or a file.
pub(crate) fn readable_source(path: &Path) -> Result<(), String> {
    let kind = metadata(path)?.file_type();
    if kind.is_char_device() || kind.is_file() {
        return Ok(());
    }
    Err(format!("{} is neither a character device nor a file; use /dev/urandom", path.display()))
}

fn regular(path: &Path) -> Result<fs::Metadata, String> {
    let metadata = metadata(path)?;
    if !metadata.is_file() {
        return Err(format!("{} is not a regular file; set the path of one", path.display()));
    }
    Ok(metadata)
}

fn metadata(path: &Path) -> Result<fs::Metadata, String> {
    if path.as_os_str().is_empty() {
        return Err("is empty; set the path of an existing file".to_owned());
    }
    // QEMU and its helpers run in a directory of their own, so a relative path would mean another file to them.
    if !path.is_absolute() {
        return Err(format!("{} is not an absolute path; start it with /", path.display()));
    }
    fs::metadata(path).map_err(|error| {
        format!("{}: {}; install it, or set the path of an existing file", path.display(), reason(&error))
    })
}

/// The operating system's words without the error number.
pub(crate) fn reason(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}
