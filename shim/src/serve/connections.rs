//! The connections that are open to the shim, so that an end of one can be waited for.

use std::{
    future::poll_fn,
    io::Result,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use containerd_shim_protos::ttrpc::r#async::transport::Listener;
use futures::stream::unfold;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::timeout,
};

/// How many there are. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Connections(Arc<watch::Sender<usize>>);

impl Connections {
    /// What ttrpc is to accept connections from, for them to be counted here.
    pub(super) fn of(&self, listener: UnixListener) -> Listener {
        let open = self.0.clone();
        Listener::new(unfold((listener, open), async |(listener, open)| {
            let accepted = poll_fn(|context| listener.poll_accept(context)).await;
            let counted = accepted.map(|(stream, _)| Counted { stream, _one: One::of(&open) });
            Some((counted, (listener, open)))
        }))
    }

    /// Waits until one that is open now is closed, if that does not take longer than `limit`.
    pub(crate) async fn one_closes(&self, limit: Duration) {
        let mut open = self.0.subscribe();
        let before = *open.borrow_and_update();
        let _ = timeout(limit, open.wait_for(|open| *open < before)).await;
    }

    /// How many there are from now on, for as long as this value is there.
    pub(super) fn watch(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }

    /// Takes note of one more.
    #[cfg(test)]
    pub(super) fn opened(&self) -> One {
        One::of(&self.0)
    }
}

/// One of those that are open, for as long as it is there.
pub(super) struct One(Arc<watch::Sender<usize>>);

impl One {
    fn of(open: &Arc<watch::Sender<usize>>) -> One {
        open.send_modify(|open| *open += 1);
        One(open.clone())
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

struct Counted {
    stream: UnixStream,
    _one: One,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::ttrpc::r#async::Server;

    use super::*;

    #[tokio::test]
    async fn an_end_of_a_connection_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let connections = Connections::default();
        let listener = connections.of(UnixListener::bind(&socket).unwrap());
        let mut server = Server::new().add_listener(listener);
        server.start().await.unwrap();
        let (one, _other) =
            (UnixStream::connect(&socket).await.unwrap(), UnixStream::connect(&socket).await.unwrap());
        connections.0.subscribe().wait_for(|open| *open == 2).await.unwrap();
        let limit = Duration::from_secs(60);
        tokio::join!(timeout(limit, connections.one_closes(2 * limit)), async { drop(one) }).0.unwrap();
        connections.one_closes(Duration::ZERO).await;
    }
}
