//! Connections with the host.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::transport::Listener;

use crate::error::Error;

/// Most bytes handed to the kernel in one write. A larger write may become one packet in several
/// descriptors, of which vhost-device-vsock 0.3 reads the first and then waits for ever.
const MAX_WRITE: usize = 32 * 1024;

/// Pause after a refused accept, which is most likely a lack of memory that lasts.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection with the host whose writes are small enough for every device behind it.
pub(super) struct HostStream(VsockStream);

/// Listens on `port` for the host. Nobody else is let in: a container may have vsock sockets too.
pub(super) fn listen(port: u32) -> Result<Listener, Error> {
    let what = format!("listen on vsock port {port}");
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map_err(Error::system(what))?;
    let connections = stream::unfold(listener, |listener| async {
        let accepted = accept_host(&listener).await;
        Some((accepted, listener))
    });
    Ok(Listener::new(connections))
}

async fn accept_host(listener: &VsockListener) -> io::Result<HostStream> {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if peer.cid() == VMADDR_CID_HOST => return Ok(HostStream(stream)),
            Ok((_, peer)) => ::log::warn!("connection from vsock address {} refused", peer.cid()),
            Err(error) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                return Err(error);
            }
        }
    }
}

/// Connects to the host's `port` and hangs up.
pub(super) async fn touch_host(port: u32) -> io::Result<()> {
    VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await.map(drop)
}

impl AsyncRead for HostStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &buf[..buf.len().min(MAX_WRITE)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
