//! News of a network namespace.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The kernel's groups of news: interfaces, addresses and routes of both families. Neighbours come and go with traffic,
/// so those are none.
const GROUPS: [u32; 5] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
];

/// Becomes readable when an interface, an address or a route comes, changes or goes in one network namespace.
#[derive(Debug)]
pub struct Watch(Socket);

impl Watch {
    /// Of the network namespace of this thread, from now on.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open() -> io::Result<Watch> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Watch(socket))
    }

    /// Takes all news there are. What they say is not told: some may be lost where there are many, so whoever wants to
    /// know looks at what there is.
    ///
    /// # Errors
    /// `WouldBlock` where there are none, or the kernel's refusal.
    pub fn take(&self) -> io::Result<()> {
        let mut has_some = false;
        loop {
            // No byte of it is kept.
            let taken = self.0.recv(&mut [0_u8; 0].as_mut_slice(), 0);
            match taken {
                Ok(_) => has_some = true,
                // The kernel has thrown some away, and says so once.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => has_some = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && has_some => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
