//! The daemon of Dragonfly Nydus behind a virtio-fs share.
//!
//! ```text
//! started -> its API answers and says RUNNING -> the directory is mounted in it -> QEMU's connection is made
//! ```
//!
//! It takes no open sockets and makes its own, whose names are gone once they have been used: nobody else can ever
//! connect. What it passes through is not jailed by the daemon itself, as virtiofsd's is.

mod api;
mod http;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use tokio::net::UnixStream;

use crate::error::{BootError, NydusdError};
use crate::exit::Who;
use crate::processes::{Processes, Program};
use crate::spec::VirtioFs;
use api::Api;

/// Where below the root of what the guest mounts it finds the shared directory. As in Kata, so that images of Nydus have
/// room beside it.
pub const MOUNT_POINT: &str = "/containers";

/// What QEMU connects to.
const SOCKET: &str = "nydusd.sock";
/// Where it is told what to serve.
const API: &str = "nydusd-api.sock";

/// Starts the daemon and has it serve `source`; returns QEMU's end of the connection to it. Does not end by itself when
/// the daemon does.
pub(crate) async fn start(processes: &Processes, fs: &VirtioFs, source: &Path) -> Result<OwnedFd, BootError> {
    let names = [SOCKET, API].map(|name| processes.claim(name));
    processes.start(Program {
        who: Who::Nydusd,
        path: &fs.daemon,
        args: arguments(fs),
        fds: Vec::new(),
        // Files get the modes that the guest asks for; the sockets lie in a directory that is ours alone.
        umask: 0,
        // Whoever serves the files of many users cannot be one of them.
        user: None,
        network: None,
    })?;
    let run_dir = processes.run_dir();
    let api = Api::at(run_dir.short(API));
    // Its API comes up last: QEMU's socket is there by then.
    api.running().await?;
    api.mount_passthrough(MOUNT_POINT, source).await?;
    let socket = connect(&run_dir.short(SOCKET))
        .await
        .map_err(|source| NydusdError::Io { asked: SOCKET.to_owned(), source })?;
    for name in names {
        // The daemon removes the one itself when it has accepted QEMU's connection.
        let _ = fs::remove_file(name);
    }
    Ok(socket)
}

async fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = UnixStream::connect(path).await?.into_std()?;
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

/// Relative names: the daemon works in the run directory, whose own path may be too long for a socket's address.
fn arguments(fs: &VirtioFs) -> Vec<OsString> {
    let own = ["virtiofs", "--hybrid-mode", "--sock", SOCKET, "--apisock", API];
    own.into_iter().chain(fs.extra_args.iter()).map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ExtraArgs, FsServer};

    #[test]
    fn a36_the_daemon_is_told_its_sockets_and_what_the_operator_adds() {
        let extra_args = ExtraArgs::of_nydusd(["--log-level".to_owned(), "debug".to_owned()]).unwrap();
        let daemon = "/usr/local/bin/nydusd".into();
        let fs = VirtioFs { daemon, server: FsServer::Nydusd, queue_size: 1024, dax_mib: 0, extra_args };
        assert_eq!(
            arguments(&fs),
            [
                "virtiofs",
                "--hybrid-mode",
                "--sock",
                "nydusd.sock",
                "--apisock",
                "nydusd-api.sock",
                "--log-level",
                "debug"
            ]
        );
    }
}
