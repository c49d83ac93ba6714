//! The two loops that move a process's streams: input to the guest, output from it.

use std::{
    fmt::Display,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use agent_client::AgentClient;
use slog::{Logger as Log, debug};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::Receiver,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use vmm::Stream;

use super::{
    sink::{Sink, Sinks},
    wires::Wire,
};

/// Bytes moved by one call: what a FIFO holds, and what every agent takes and gives in one message.
const CHUNK: usize = 64 * 1024;
/// After a process has ended, its output is waited for as long as something of it still arrives in this time.
const STALLED: Duration = Duration::from_secs(10);

/// Whose streams these are, in the guest's terms.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) agent: AgentClient,
    pub(crate) container: String,
    pub(crate) exec: String,
    pub(crate) log: Log,
}

#[derive(Clone, Copy)]
enum Output {
    Stdout,
    Stderr,
}

/// Output on its way. Dropping it stops the loops.
pub(crate) struct Draining {
    loops: Vec<JoinHandle<()>>,
    done: watch::Receiver<bool>,
    moved: Arc<AtomicU64>,
}

impl Draining {
    /// Waits until all output has been delivered, `limit` at the longest. Tells whether it was.
    pub(crate) async fn within(&mut self, limit: Duration) -> bool {
        timeout(limit, self.done.wait_for(|done| *done)).await.is_ok()
    }

    /// Waits for the rest of the output of a process that has ended: for as long as a slow reader takes some, but
    /// not for a reader that takes nothing, nor for a grandchild that keeps the stream open in silence.
    pub(crate) async fn finish(mut self) {
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            if self.within(STALLED).await || self.moved.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        self.loops.iter().for_each(JoinHandle::abort);
    }
}

/// Starts moving output to `sinks`. What has none is taken from the guest all the same, so that the process can write.
pub(crate) fn drain(
    source: &Source,
    sinks: Sinks,
    [stdout_wire, stderr_wire]: [Wire; 2],
    terminal: bool,
) -> Draining {
    let (done, is_done) = watch::channel(false);
    let moved = Arc::new(AtomicU64::new(0));
    let Sinks { stdout, stderr, logger } = sinks;
    let mut streams: Vec<JoinHandle<()>> = Vec::new();
    let all = [(stdout, stdout_wire, Output::Stdout), (stderr, stderr_wire, Output::Stderr)];
    for (sink, wire, output) in all.into_iter().take(if terminal { 1 } else { 2 }) {
        let way = Way { source: source.clone(), output, sink, moved: moved.clone() };
        match wire {
            Some(wire) if way.sink.is_some() => streams.push(tokio::spawn(way.by_wire(wire))),
            // The guest throws away what it can no longer send.
            Some(wire) => drop(wire),
            None => streams.push(tokio::spawn(way.by_calls())),
        }
    }
    let aborts: Vec<_> = streams.iter().map(JoinHandle::abort_handle).collect();
    let all = tokio::spawn(async move {
        let _guard = AbortAll(aborts);
        for stream in streams {
            let _ = stream.await;
        }
        let _ = done.send(true);
        if let Some(logger) = logger {
            logger.finish().await;
        }
    });
    Draining { loops: vec![all], done: is_done, moved }
}

/// Stops the loops when the task that joins them is itself stopped.
struct AbortAll(Vec<tokio::task::AbortHandle>);

impl Drop for AbortAll {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// One output's way from the guest.
struct Way {
    source: Source,
    output: Output,
    sink: Option<Sink>,
    moved: Arc<AtomicU64>,
}

impl Way {
    async fn by_wire(mut self, mut wire: Box<dyn Stream>) {
        // Memory is not touched before there is something to put there.
        let mut buffer = Vec::with_capacity(CHUNK);
        loop {
            buffer.clear();
            match wire.read_buf(&mut buffer).await {
                Ok(0) => return,
                Ok(_) => self.deliver(&buffer).await,
                Err(error) => return self.note("output ended", &error),
            }
        }
    }

    async fn by_calls(mut self) {
        loop {
            let Source { agent, container, exec, .. } = &self.source;
            let read = match self.output {
                Output::Stdout => agent.read_stdout(container, exec, CHUNK).await,
                Output::Stderr => agent.read_stderr(container, exec, CHUNK).await,
            };
            match read {
                Ok(data) if data.is_empty() => return,
                Ok(data) => self.deliver(&data).await,
                Err(error) => return self.note("output ended", &error),
            }
        }
    }

    /// Going on without a reader lets the process finish instead of blocking it for ever.
    async fn deliver(&mut self, data: &[u8]) {
        if let Some(sink) = &mut self.sink
            && let Err(error) = sink.write_all(data).await
        {
            self.note("output discarded", &error);
        }
        self.moved.fetch_add(data.len() as u64, Ordering::Relaxed);
    }

    fn note(&self, what: &str, why: &dyn Display) {
        debug!(self.source.log, "{what}"; "exec" => &self.source.exec, "why" => why.to_string());
    }
}

/// Moves input from a client to the process until the input ends, then ends the process's input. Without a client
/// it ends at once.
///
/// A process that takes no more has the client wait until it ends, with which this is to be dropped, as by runc's shim: a
/// client whose FIFO has no reader is sent SIGPIPE, which `ctr` hands on to the process.
pub(crate) async fn feed(source: Source, mut input: Option<Receiver>, wire: Wire) {
    let fed = match (&mut input, wire) {
        (Some(input), Some(wire)) => copy_in(input, wire).await.map_err(|error| error.to_string()),
        (None, Some(wire)) => return drop(wire),
        (input, None) => feed_by_calls(&source, input.as_mut()).await.map_err(|error| error.to_string()),
    };
    let Err(why) = fed else { return };
    debug!(source.log, "input ended"; "exec" => &source.exec, "why" => why);
    if input.is_some() {
        pending::<()>().await;
    }
}

async fn copy_in(input: &mut Receiver, mut wire: Box<dyn Stream>) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(CHUNK);
    while input.read_buf(&mut buffer).await? > 0 {
        wire.write_all(&buffer).await?;
        buffer.clear();
    }
    wire.shutdown().await
}

async fn feed_by_calls(source: &Source, input: Option<&mut Receiver>) -> Result<(), agent_client::Error> {
    if let Some(input) = input {
        let mut buffer = Vec::with_capacity(CHUNK);
        while let Ok(1..) = input.read_buf(&mut buffer).await {
            let mut data = buffer.as_slice();
            while !data.is_empty() {
                let taken = source.agent.write_stdin(&source.container, &source.exec, data).await?;
                data = &data[taken.min(data.len())..];
            }
            buffer.clear();
        }
    }
    source.agent.close_stdin(&source.container, &source.exec).await
}
