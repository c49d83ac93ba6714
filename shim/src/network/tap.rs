//! Taps: interfaces that a program is behind, of which QEMU gets the descriptors.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use crate::error::{Error, Result};

/// Where taps are made and attached to, in the network namespace of whoever opens it.
const TUN: &str = "/dev/net/tun";
/// What moves packets between a tap and a machine in the kernel.
const VHOST_NET: &str = "/dev/vhost-net";

/// Ethernet without a header of the kernel's, and with virtio's, so that a guest may leave checksums to others.
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Makes the tap `name` of so many queues in this thread's namespace. It lasts as long as its descriptors, or until it
/// is removed.
///
/// # Errors
/// The kernel's refusal, also where an interface has that name.
pub(super) fn make(name: &str, queues: u32) -> Result<Vec<OwnedFd>> {
    let flags = if queues > 1 { FLAGS | libc::IFF_MULTI_QUEUE } else { FLAGS };
    let refused = || Error::io(format!("make the tap {name}"));
    let mut all = vec![queue(name, flags | libc::IFF_TUN_EXCL).map_err(refused())?];
    for _ in 1..queues {
        all.push(queue(name, flags).map_err(refused())?);
    }
    Ok(all)
}

/// Attaches to the tap `name`, by so many queues if it has more than one.
///
/// # Errors
/// The kernel's refusal, also where somebody is behind it already.
pub(super) fn attach(name: &str, queues: u32) -> Result<Vec<OwnedFd>> {
    let refused = || Error::io(format!("attach to the tap {name}"));
    // Whether a tap may have several queues is settled when it is made.
    let first = match queue(name, FLAGS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            queue(name, FLAGS | libc::IFF_MULTI_QUEUE).map_err(refused())?
        }
        other => return other.map(|queue| vec![queue]).map_err(refused()),
    };
    let mut all = vec![first];
    for _ in 1..queues {
        all.push(queue(name, FLAGS | libc::IFF_MULTI_QUEUE).map_err(refused())?);
    }
    Ok(all)
}

/// Attaches to the macvtap of this number by so many queues.
///
/// # Errors
/// The kernel's refusal; the host's devices must be where the kernel shows them.
pub(super) fn macvtap(index: u32, queues: u32) -> Result<Vec<OwnedFd>> {
    let path = format!("/dev/tap{index}");
    (0..queues).map(|_| open(&path).map(OwnedFd::from).map_err(Error::io(&path))).collect()
}

/// `/dev/vhost-net` so many times; none where the host has none.
///
/// # Errors
/// The kernel's refusal.
pub(super) fn vhost(queues: usize) -> Result<Vec<OwnedFd>> {
    if !Path::new(VHOST_NET).exists() {
        return Ok(Vec::new());
    }
    (0..queues).map(|_| open(VHOST_NET).map(OwnedFd::from).map_err(Error::io(VHOST_NET))).collect()
}

/// One more queue of the tap `name`.
fn queue(name: &str, flags: i32) -> io::Result<OwnedFd> {
    let tun = open(TUN)?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // The kernel reads 16 bits, of which EXCL is the sign.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request outlives the call and is what TUNSETIFF reads and writes.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(tun.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}
