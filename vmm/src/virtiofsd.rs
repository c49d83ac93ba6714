//! The daemon behind a virtio-fs share.
//!
//! The shim binds the daemon's socket, makes QEMU's connection to it and removes its name, all before either process
//! runs: nothing is waited for, and nobody else can ever connect.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::error::BootError;
use crate::exit::Who;
use crate::processes::{Processes, Program};
use crate::run_dir::RunDir;
use crate::spec::{FsCache, VirtioFs};

/// Where the socket lies for a moment.
const SOCKET: &str = "virtiofsd.sock";

/// Starts the daemon for `source`; returns QEMU's end of the connection to it.
pub(crate) fn start(
    processes: &Processes,
    fs: &VirtioFs,
    cache: FsCache,
    source: &Path,
) -> Result<OwnedFd, BootError> {
    let path = processes.claim(SOCKET);
    let (listener, connection) = connected(processes.run_dir())
        .map_err(|source| BootError::Io { doing: format!("listen on {}", path.display()), source })?;
    processes.start(Program {
        who: Who::Virtiofsd,
        path: &fs.daemon,
        args: arguments(fs, cache, source, listener.as_raw_fd()),
        fds: vec![listener],
        // Files get the modes that the guest asks for; the daemon makes nothing else.
        umask: 0,
        // Whoever serves the files of many users cannot be one of them.
        user: None,
        network: None,
    })?;
    Ok(connection)
}

fn connected(run_dir: &RunDir) -> io::Result<(OwnedFd, OwnedFd)> {
    let path = run_dir.short(SOCKET);
    let listener = UnixListener::bind(&path)?;
    let connection = UnixStream::connect(&path)?;
    std::fs::remove_file(&path)?;
    Ok((listener.into(), connection.into()))
}

fn arguments(fs: &VirtioFs, cache: FsCache, source: &Path, listener: i32) -> Vec<OsString> {
    let cache = match cache {
        FsCache::Never => "never",
        FsCache::Metadata => "metadata",
        FsCache::Auto => "auto",
        FsCache::Always => "always",
    };
    let mut shared = OsString::from("--shared-dir=");
    shared.push(source);
    let mut args: Vec<OsString> = vec![
        format!("--fd={listener}").into(),
        shared,
        format!("--cache={cache}").into(),
        "--sandbox=namespace".into(),
        "--seccomp=kill".into(),
    ];
    args.extend(fs.extra_args.iter().map(OsString::from));
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ExtraArgs, FsServer};

    fn share(extra: &[&str]) -> VirtioFs {
        let extra_args = ExtraArgs::new(extra.iter().map(ToString::to_string)).unwrap();
        VirtioFs {
            daemon: "/usr/libexec/virtiofsd".into(),
            server: FsServer::Virtiofsd(FsCache::Always),
            queue_size: 1024,
            dax_mib: 0,
            extra_args,
        }
    }

    #[test]
    fn the_daemon_is_always_jailed() {
        assert_eq!(
            arguments(&share(&["--thread-pool-size", "1"]), FsCache::Always, Path::new("/run/shared,dir"), 7),
            [
                "--fd=7",
                "--shared-dir=/run/shared,dir",
                "--cache=always",
                "--sandbox=namespace",
                "--seccomp=kill",
                "--thread-pool-size",
                "1",
            ]
        );
    }

    #[test]
    fn nobody_else_can_connect() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::open(dir.path()).unwrap();
        let (listener, _connection) = connected(&run_dir).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        UnixListener::from(listener).accept().unwrap();
    }

    #[test]
    fn a1_a_socket_fits_into_a_directory_of_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        connected(&RunDir::open(&deep).unwrap()).unwrap();
    }
}
