//! Connections of a process's streams with the guest: one each, so that bytes need no calls.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use agent_client::{STREAM_PORT, StreamPorts};
use slog::{Logger, info};
use tokio::{time::timeout, try_join};
use vmm::{Connection, Stream, Vsock};

/// How long the guest may take over a connection before its streams go by calls instead.
const PATIENCE: Duration = Duration::from_secs(5);

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

/// Whether a guest takes such connections. Its agent says so by listening; one that does not is asked once.
#[derive(Debug)]
pub(crate) struct Offer(AtomicBool);

impl Default for Offer {
    fn default() -> Offer {
        Offer(AtomicBool::new(true))
    }
}

impl Offer {
    /// Connects the streams of a process that is about to be made, with what the agent is to be told of them.
    pub(crate) async fn open(&self, vsock: &dyn Vsock, terminal: bool, log: &Logger) -> (Wires, StreamPorts) {
        if !self.0.load(Ordering::Relaxed) {
            return Default::default();
        }
        let late = |_| io::ErrorKind::TimedOut.into();
        match timeout(PATIENCE, connect(vsock, terminal)).await.unwrap_or_else(|elapsed| Err(late(elapsed))) {
            Ok(connected) => connected,
            Err(error) => {
                self.0.store(false, Ordering::Relaxed);
                info!(log, "the guest's agent takes no streams on connections of their own, so they go by calls";
                    "why" => error.to_string());
                Default::default()
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
