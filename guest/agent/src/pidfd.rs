//! Descriptors of processes.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use nix::{errno::Errno, unistd::Pid};

/// One of the process that has this id now.
pub(crate) fn open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: passes two numbers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
