//! What the kernel says about devices: datagrams of `key=value` strings, each with a NUL at its end (the kernel's
//! `lib/kobject_uevent.c`).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::readiness;

/// The group that the kernel itself speaks to.
const KERNEL: u32 = 1;

/// Longest datagram: the kernel's buffer has 2048 bytes, and a head before it.
const LONGEST: usize = 4096;

/// The socket it says that on.
pub(super) struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkKObjectUEvent);
        let fd = socket(family, SockType::Datagram, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
        Ok(Self(readiness::watch(fd, Interest::READABLE)?))
    }

    /// The next event. Where some were lost, which the kernel tells, there is one that says so little that whoever
    /// waits had better look.
    pub(super) async fn next(&self) -> io::Result<Uevent> {
        let mut buffer = vec![0; LONGEST];
        let read = |fd: &OwnedFd| Ok(recvfrom::<NetlinkAddr>(fd.as_raw_fd(), &mut buffer)?);
        match self.0.async_io(Interest::READABLE, read).await {
            Ok((length, sender)) => {
                buffer.truncate(length);
                // Programs may send to the group as well, those in containers with a network of their own not to this one.
                let by_kernel = sender.is_some_and(|sender| sender.pid() == 0);
                Ok(if by_kernel { Uevent::parse(&buffer) } else { Uevent::default() })
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Uevent::missed()),
            Err(error) => Err(error),
        }
    }
}

/// One thing that happened to a device.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Uevent {
    action: String,
    subsystem: String,
}

impl Uevent {
    fn parse(datagram: &[u8]) -> Self {
        let mut event = Self::default();
        for text in datagram.split(|byte| *byte == 0).filter_map(|field| str::from_utf8(field).ok()) {
            match text.split_once('=') {
                Some(("ACTION", action)) => event.action = action.to_owned(),
                Some(("SUBSYSTEM", subsystem)) => event.subsystem = subsystem.to_owned(),
                _ => {}
            }
        }
        event
    }

    fn missed() -> Self {
        Self { action: "add".to_owned(), subsystem: "virtio".to_owned() }
    }

    /// Whether there is a device that was not there before.
    pub(super) fn is_new(&self) -> bool {
        self.action == "add"
    }

    pub(super) fn is_of(&self, subsystem: &str) -> bool {
        self.subsystem == subsystem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_tells_what_happened_to_what() {
        let text =
            b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=virtio\0MODALIAS=virtio:d2v1AF4\0";
        let event = Uevent::parse(text);
        assert!(event.is_new() && event.is_of("virtio"));
        assert!(!Uevent::parse(b"remove@/x\0ACTION=remove\0SUBSYSTEM=virtio\0").is_new());
    }

    #[test]
    fn nonsense_is_no_event() {
        for nonsense in [&b""[..], b"\0\0", b"\xff\xfe=\0", b"ACTION"] {
            assert_eq!(Uevent::parse(nonsense), Uevent::default());
        }
    }

    #[tokio::test]
    async fn the_kernel_can_be_listened_to() {
        Uevents::listen().unwrap();
    }
}
