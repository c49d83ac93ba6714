//! Connections of a process's streams with the guest: one each, so that bytes need no calls.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use agent_client::{STREAM_PORT, StreamPorts};
use slog::{Logger, info};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
    try_join,
};
use vmm::{Connection, Stream, Vsock};

/// How long the guest may take over a connection before its streams go by calls instead.
const PATIENCE: Duration = Duration::from_secs(5);

/// Processes whose connections the agent may not know of yet. A guest's kernel refuses connections when 128 wait for
/// the agent to take them, and each process has three.
const AT_A_TIME: usize = 32;

/// What one stream is connected by; `None` when it goes by calls.
pub(crate) type Wire = Option<Box<dyn Stream>>;

/// The connections of one process.
#[derive(Default)]
pub(crate) struct Wires {
    pub(crate) stdin: Wire,
    pub(crate) stdout: Wire,
    /// Never there with a terminal, which has no such stream.
    pub(crate) stderr: Wire,
}

/// What a process that is about to be made is connected by.
#[derive(Default)]
pub(crate) struct Connected {
    pub(crate) wires: Wires,
    /// What the agent is told of them.
    pub(crate) ports: StreamPorts,
    /// To be held until the agent knows.
    pub(crate) turn: Option<OwnedSemaphorePermit>,
}

/// Whether a guest takes such connections. Its agent says so by listening; one that does not is asked once. One that
/// did and then refuses is short of something, and asked again the next time.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The first answer, once there is one.
    takes: OnceLock<bool>,
    turns: Arc<Semaphore>,
}

impl Default for Offer {
    fn default() -> Offer {
        Offer { takes: OnceLock::new(), turns: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

impl Offer {
    /// Connects the streams of a process.
    pub(crate) async fn open(&self, vsock: &dyn Vsock, terminal: bool, log: &Logger) -> Connected {
        let turn = self.turns.clone().acquire_owned().await.ok();
        if self.takes.get() == Some(&false) {
            return Connected::default();
        }
        let late = |_| io::ErrorKind::TimedOut.into();
        match timeout(PATIENCE, connect(vsock, terminal)).await.unwrap_or_else(|elapsed| Err(late(elapsed))) {
            Ok((wires, ports)) => {
                let _ = self.takes.set(true);
                Connected { wires, ports, turn }
            }
            Err(error) => {
                let why = error.to_string();
                if *self.takes.get_or_init(|| false) {
                    info!(log, "a process's streams go by calls"; "why" => why);
                } else {
                    info!(log, "the guest's agent takes no streams on connections of their own, so they go by calls";
                        "why" => why);
                }
                Connected::default()
            }
        }
    }
}

async fn connect(vsock: &dyn Vsock, terminal: bool) -> io::Result<(Wires, StreamPorts)> {
    let wire = || vsock.connect(STREAM_PORT);
    let stderr = async { if terminal { Ok(None) } else { wire().await.map(Some) } };
    let (stdin, stdout, stderr) = try_join!(wire(), wire(), stderr)?;
    let ports = StreamPorts {
        stdin: stdin.local_port,
        stdout: stdout.local_port,
        stderr: stderr.as_ref().map_or(0, |stderr: &Connection| stderr.local_port),
    };
    let wires = Wires {
        stdin: Some(stdin.stream),
        stdout: Some(stdout.stream),
        stderr: stderr.map(|stderr| stderr.stream),
    };
    Ok((wires, ports))
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::atomic::{AtomicU32, Ordering},
        task::Poll,
    };

    use async_trait::async_trait;
    use slog::{Discard, o};
    use tokio::io::duplex;
    use vmm::Listener;

    use super::*;

    /// A guest, and how often it was asked for a connection.
    #[derive(Debug)]
    struct Guest {
        listens: bool,
        asked: AtomicU32,
    }

    impl Guest {
        fn new(listens: bool) -> Guest {
            Guest { listens, asked: AtomicU32::new(0) }
        }
    }

    #[async_trait]
    impl Vsock for Guest {
        async fn connect(&self, port: u32) -> io::Result<Connection> {
            assert_eq!(port, STREAM_PORT);
            let local_port = 1 + self.asked.fetch_add(1, Ordering::Relaxed);
            let stream = Box::new(duplex(1).0);
            self.listens
                .then_some(Connection { stream, local_port })
                .ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
        }

        fn listen(&self, _: u32) -> Option<Listener> {
            None
        }
    }

    fn log() -> Logger {
        Logger::root(Discard, o!())
    }

    #[tokio::test]
    async fn each_stream_has_a_connection_and_a_terminal_one_less() {
        let (offer, guest) = (Offer::default(), Guest::new(true));
        let three = offer.open(&guest, false, &log()).await;
        assert_eq!(three.ports, StreamPorts { stdin: 1, stdout: 2, stderr: 3 });
        let two = offer.open(&guest, true, &log()).await;
        assert_eq!(two.ports, StreamPorts { stdin: 4, stdout: 5, stderr: 0 });
        assert!(two.wires.stdin.is_some() && two.wires.stdout.is_some() && two.wires.stderr.is_none());
    }

    #[tokio::test]
    async fn a_guest_that_takes_none_is_asked_once() {
        let (offer, guest) = (Offer::default(), Guest::new(false));
        assert_eq!(offer.open(&guest, false, &log()).await.ports, StreamPorts::default());
        let asked = guest.asked.load(Ordering::Relaxed);
        assert!(offer.open(&guest, false, &log()).await.wires.stdout.is_none());
        assert_eq!(guest.asked.load(Ordering::Relaxed), asked);
    }

    #[tokio::test]
    async fn a_guest_that_took_some_is_asked_again_after_a_refusal() {
        let (offer, guest) = (Offer::default(), Guest::new(true));
        offer.open(&guest, false, &log()).await;
        let deaf = Guest::new(false);
        assert!(offer.open(&deaf, false, &log()).await.wires.stdin.is_none());
        assert!(offer.open(&guest, false, &log()).await.wires.stdin.is_some());
    }

    #[tokio::test]
    async fn connections_the_agent_does_not_know_of_are_no_more_than_its_kernel_keeps() {
        let (offer, guest, log) = (Offer::default(), Guest::new(true), log());
        let mut unknown = Vec::new();
        for _ in 0..AT_A_TIME {
            unknown.push(offer.open(&guest, false, &log).await);
        }
        let mut next = Box::pin(offer.open(&guest, false, &log));
        assert!(poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_pending())).await);
        unknown.pop();
        assert!(next.await.wires.stdin.is_some());
    }
}
