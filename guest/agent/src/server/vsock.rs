//! Connections with the host.

use std::{io, time::Duration};

use futures::stream;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::transport::Listener;

use crate::error::Error;

/// Pause after a refused accept, which is most likely a lack of memory that lasts.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port that the host may connect to. Nobody else is let in: a container may have vsock sockets too.
pub(super) struct HostListener(VsockListener);

impl HostListener {
    pub(super) fn bind(port: u32) -> Result<Self, Error> {
        let what = format!("listen on vsock port {port}");
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map(Self).map_err(Error::system(what))
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
