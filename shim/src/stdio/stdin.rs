//! The FIFO a client writes a process's input to.

use std::{
    fs::OpenOptions,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

use tokio::net::unix::pipe::{self, Receiver};

use crate::error::{Error, Result};

/// Keeps a process's input open. While it lives, a client may go and another come; once it is dropped the input
/// ends when the last client has closed its side and everything written has been read.
pub(crate) struct Held(#[expect(dead_code, reason = "held for its open descriptor alone")] std::fs::File);

/// Whether the input at `path`, if there is to be one, can be opened later.
///
/// # Errors
/// Names the path when it is no FIFO or not there.
pub(crate) fn check(path: &str) -> Result<()> {
    let path = Path::new(path.strip_prefix("fifo://").unwrap_or(path));
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let what = || format!("stdin FIFO {}", path.display());
    let kind = std::fs::metadata(path).map_err(Error::io(what()))?.file_type();
    if kind.is_fifo() { Ok(()) } else { Err(Error::InvalidArgument(format!("{}: is no FIFO", what()))) }
}

/// Opens the input at `path`, or nothing when the path is empty.
///
/// # Errors
/// Names the path when it is no FIFO or not there.
pub(crate) fn open(path: &str) -> Result<Option<(Receiver, Held)>> {
    if path.is_empty() {
        return Ok(None);
    }
    let path = Path::new(path.strip_prefix("fifo://").unwrap_or(path));
    let what = || format!("stdin FIFO {}", path.display());
    let receiver = pipe::OpenOptions::new().open_receiver(path).map_err(Error::io(what()))?;
    let held = OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(Error::io(what()))?;
    Ok(Some((receiver, Held(held))))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn input_ends_when_it_is_let_go_and_not_when_a_client_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (mut receiver, held) = open(path.to_str().unwrap()).unwrap().unwrap();
        for word in ["one ", "two"] {
            OpenOptions::new().write(true).open(&path).unwrap().write_all(word.as_bytes()).unwrap();
        }
        drop(held);
        let mut all = String::new();
        receiver.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "one two");
    }
}
