//! Connections with the host.

use std::{io, os::fd::AsRawFd, time::Duration};

use futures::stream;
use nix::errno::Errno;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::transport::Listener;

use crate::error::Error;

/// Linux's vm_sockets.h.
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;

/// Pause after a refused accept, which is most likely a lack of memory that lasts.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port that the host may connect to. Nobody else is let in: a container may have vsock sockets too.
pub(super) struct HostListener(VsockListener);

impl HostListener {
    pub(super) fn bind(port: u32) -> Result<Self, Error> {
        let what = format!("listen on vsock port {port}");
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map(Self).map_err(Error::system(what))
    }

    /// Has connections that come from now on hold up to `room` bytes each that have yet to be read, where the kernel's own choice is 256 KiB.
    pub(super) fn with_room(self, room: u64) -> Result<Self, Error> {
        for option in [SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE] {
            let length = size_of_val(&room) as libc::socklen_t;
            // SAFETY: the kernel reads as many bytes of a number that outlives the call.
            let set = unsafe {
                libc::setsockopt(self.0.as_raw_fd(), libc::AF_VSOCK, option, (&raw const room).cast(), length)
            };
            Errno::result(set).map_err(Error::system("have more room for what the host sends"))?;
        }
        Ok(self)
    }

    /// The next connection, and the host's port it comes from.
    pub(super) async fn accept(&self) -> io::Result<(VsockStream, u32)> {
        loop {
            match self.0.accept().await {
                Ok((stream, peer)) if peer.cid() == VMADDR_CID_HOST => {
                    return Ok((stream, peer.port()));
                }
                Ok((_, peer)) => ::log::warn!("connection from vsock address {} refused", peer.cid()),
                Err(error) => {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    return Err(error);
                }
            }
        }
    }

    pub(super) fn into_ttrpc(self) -> Listener {
        Listener::new(stream::unfold(self, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        }))
    }
}

/// Connects to the host's `port` and hangs up.
pub(super) async fn touch_host(port: u32) -> io::Result<()> {
    VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await.map(drop)
}
