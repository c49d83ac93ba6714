//! The guest's notice that its agent serves.
//!
//! The guest connects to the host's port [`READY_PORT`] and closes. The vsock helper passes that on to a
//! Unix socket, on which we listen since before the guest boots. Nobody has to poll, which a helper whose
//! guest has no driver yet does not take well.

use std::{
    fs, io,
    os::{fd::AsRawFd, unix::net::UnixListener as StdListener},
    path::{Path, PathBuf},
};

use nix::sys::{
    socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
    stat::{self, Mode},
};
use tokio::net::UnixListener;

use crate::{error::Error, short_path::ShortPath};

/// The port on the host the guest's agent connects to when it serves.
pub const READY_PORT: u32 = 1025;

/// Listens for the guest's notice. The socket's file is removed with the value.
#[derive(Debug)]
pub struct ReadyListener {
    listener: UnixListener,
    path: PathBuf,
}

impl ReadyListener {
    /// Listens on `path`, by the helper's convention its own socket's path with `_1025` after it. To be
    /// called before the guest boots, inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Listen`], also when `path` exists.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        match listen(&path) {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(Error::Listen { path, source }),
        }
    }

    /// Waits, without a deadline, for the notice. Bytes that come with it are not read.
    ///
    /// # Errors
    ///
    /// [`Error::Listen`] when the system cannot accept connections.
    pub async fn wait(&self) -> Result<(), Error> {
        match self.listener.accept().await {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Listen { path: self.path.clone(), source }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ReadyListener {
    fn drop(&mut self) {
        // The run directory is removed as a whole later; a file left until then harms nobody.
        let _ = fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets the mode the socket has when it is bound, so there is no moment with a wider one and
    // the process' umask stays as it is.
    stat::fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let short = ShortPath::new(path)?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(&short.path())?)?;
    // One notice is expected; a guest that sends more fills the queue, not our table of files.
    socket::listen(&socket, Backlog::new(1)?)?;
    UnixListener::from_std(StdListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::Duration};

    use tokio::{net::UnixStream, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_connection_is_the_notice_even_if_closed_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock.sock_1025");
        let listener = ReadyListener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        timeout(Duration::from_millis(20), listener.wait()).await.unwrap_err();
        drop(UnixStream::connect(&path).await.unwrap());
        listener.wait().await.unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_path_longer_than_the_kernel_takes_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("n".repeat(76)).join("s".repeat(76));
        fs::create_dir_all(&deep).unwrap();
        let path = deep.join("vsock.sock_1025");
        let listener = ReadyListener::bind(&path).unwrap();
        let short = ShortPath::new(&path).unwrap();
        UnixStream::connect(short.path()).await.unwrap();
        listener.wait().await.unwrap();
    }

    #[tokio::test]
    async fn a_path_in_use_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::write(&path, "mine").unwrap();
        let error = ReadyListener::bind(&path).unwrap_err();
        assert!(matches!(error, Error::Listen { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
