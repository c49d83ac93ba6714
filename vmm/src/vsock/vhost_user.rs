//! vsock by a daemon beside QEMU.
//!
//! `vhost-device-vsock` takes no descriptor, so it has to be waited for: the directory's notifications say when its
//! socket is there. The daemon takes its first connection for the machine's, and so it is: the connection that tells
//! us that it listens is the one QEMU inherits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use super::Backend;
use crate::error::BootError;
use crate::exit::Who;
use crate::processes::{Processes, Program};
use crate::run_dir::RunDir;
use crate::vm::Vsock;

/// The daemon's socket for QEMU.
const DEVICE: &str = "vsock-dev.sock";
/// The daemon's socket for programs on the host.
const HOST: &str = "vsock.sock";
/// How long the daemon may take. It needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// A socket that is bound and does not listen yet is two system calls away from it, and nothing notifies of that.
const ALMOST: Duration = Duration::from_micros(500);

/// Starts `daemon` and waits until it listens, or ends.
pub(super) async fn start(processes: &Processes, daemon: &Path) -> Result<Backend, BootError> {
    processes.claim(DEVICE);
    let path = processes.claim(HOST);
    let refused = |source| BootError::Io { doing: format!("watch for {DEVICE}"), source };
    let watch = watch(processes.run_dir()).map_err(refused)?;
    processes.start(Program {
        who: Who::VsockDaemon,
        path: daemon,
        // Relative names: they are short enough for a socket's address however deep the run directory is. Each
        // daemon serves one guest, so all guests can have the daemon's default address.
        args: ["--guest-cid=3", "--socket", DEVICE, "--uds-path", HOST].map(Into::into).into(),
        fds: Vec::new(),
        umask: 0o077,
    })?;
    let mut exit = processes.exit();
    tokio::select! {
        connection = timeout(PATIENCE, connect(processes.run_dir(), watch)) => match connection {
            Ok(connection) => {
                let fd = connection.map_err(refused)?.into();
                Ok(Backend { fd, reach: Vsock::Unix { path } })
            }
            Err(_) => Err(BootError::NotReady { who: Who::VsockDaemon, after: PATIENCE }),
        },
        exit = exit.wait_for(Option::is_some) => Err(BootError::ended(exit.ok().and_then(|exit| exit.clone()))),
    }
}

/// The directory's notifications, in the form tokio asks for.
struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn watch(run_dir: &RunDir) -> io::Result<AsyncFd<Watch>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(run_dir.path(), AddWatchFlags::IN_CREATE)?;
    // SAFETY: `Watch` always gives the one descriptor it owns, and nobody takes that out of it.
    Ok(unsafe { AsyncFd::register_with_interest(Watch(inotify), Interest::READABLE) }?)
}

async fn connect(run_dir: &RunDir, watch: AsyncFd<Watch>) -> io::Result<UnixStream> {
    let path = run_dir.short(DEVICE);
    loop {
        match UnixStream::connect(&path) {
            Ok(connection) => return Ok(connection),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut ready = watch.readable().await?;
                // What was made does not matter, the next attempt will tell.
                let _ = watch.get_ref().0.read_events();
                ready.clear_ready();
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => sleep(ALMOST).await,
            Err(error) => return Err(error),
        }
    }
}
