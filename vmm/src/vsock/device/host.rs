//! How programs on the host ask for connections: by messages to the task that is the device.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    connection::Ports,
    stream::{Shared, Stream},
};
use crate::vm::{Connection, Listener, Vsock};

/// The first of the host's ports. Lower ones are those a guest expects somebody to listen on.
const FIRST_PORT: u32 = 1 << 30;
/// Connections of the guest's that wait for a listener to look at them.
const BACKLOG: usize = 4;

#[derive(Debug)]
pub(super) enum Request {
    Connect { ports: Ports, shared: Arc<Shared>, answer: oneshot::Sender<bool> },
    Listen { port: u32, connections: mpsc::Sender<Connection> },
}

/// The host's side of the device.
#[derive(Debug)]
pub(crate) struct Host {
    requests: mpsc::UnboundedSender<Request>,
    device: Arc<Notify>,
    next_port: AtomicU32,
}

impl Host {
    pub(super) fn new(requests: mpsc::UnboundedSender<Request>, device: Arc<Notify>) -> Host {
        Host { requests, device, next_port: AtomicU32::new(FIRST_PORT) }
    }
}

fn gone<T>(_: T) -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the virtual machine is gone")
}

#[async_trait]
impl Vsock for Host {
    async fn connect(&self, port: u32) -> io::Result<Connection> {
        let host = self.next_port.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::<Shared>::default();
        // Made first, so that a caller that stops waiting takes the connection down.
        let stream = Stream::new(shared.clone(), self.device.clone());
        let (answer, taken) = oneshot::channel();
        let ports = Ports { host, guest: port };
        self.requests.send(Request::Connect { ports, shared, answer }).map_err(gone)?;
        if taken.await.map_err(gone)? {
            Ok(Connection { stream: Box::new(stream), local_port: host })
        } else {
            let refused = format!("nobody in the guest listens on port {port}");
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, refused))
        }
    }

    fn listen(&self, port: u32) -> Option<Listener> {
        let (connections, listener) = mpsc::channel(BACKLOG);
        self.requests.send(Request::Listen { port, connections }).ok()?;
        Some(listener)
    }
}
