//! The two loops that move a process's streams: input to the guest, output from it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use agent_client::AgentClient;
use slog::{Logger as Log, debug};
use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver, sync::watch, task::JoinHandle, time::timeout};

use super::sink::{Sink, Sinks};

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

/// Starts moving output to `sinks`.
pub(crate) fn drain(source: &Source, sinks: Sinks) -> Draining {
    let (done, is_done) = watch::channel(false);
    let moved = Arc::new(AtomicU64::new(0));
    let Sinks { stdout, stderr, logger } = sinks;
    let mut streams: Vec<JoinHandle<()>> = Vec::new();
    for (sink, output) in [(stdout, Output::Stdout), (stderr, Output::Stderr)] {
        if let Some(sink) = sink {
            streams.push(tokio::spawn(copy_out(source.clone(), output, sink, moved.clone())));
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

async fn copy_out(source: Source, output: Output, mut sink: Sink, moved: Arc<AtomicU64>) {
    loop {
        let read = match output {
            Output::Stdout => source.agent.read_stdout(&source.container, &source.exec, CHUNK).await,
            Output::Stderr => source.agent.read_stderr(&source.container, &source.exec, CHUNK).await,
        };
        let data = match read {
            Ok(data) if data.is_empty() => return,
            Ok(data) => data,
            Err(error) => {
                debug!(source.log, "output ended"; "exec" => &source.exec, "why" => error.to_string());
                return;
            }
        };
        if let Err(error) = sink.write_all(&data).await {
            // Going on without a reader lets the process finish instead of blocking it for ever.
            debug!(source.log, "output discarded"; "exec" => &source.exec, "why" => error.to_string());
        }
        moved.fetch_add(data.len() as u64, Ordering::Relaxed);
    }
}

/// Moves input from a client to the process until the input ends, then ends the process's input.
pub(crate) async fn feed(source: Source, mut input: Receiver) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match input.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        if let Err(error) = write_all(&source, &buffer[..count]).await {
            debug!(source.log, "input ended"; "exec" => &source.exec, "why" => error.to_string());
            return;
        }
    }
    if let Err(error) = source.agent.close_stdin(&source.container, &source.exec).await {
        debug!(source.log, "input not closed"; "exec" => &source.exec, "why" => error.to_string());
    }
}

async fn write_all(source: &Source, mut data: &[u8]) -> Result<(), agent_client::Error> {
    while !data.is_empty() {
        let taken = source.agent.write_stdin(&source.container, &source.exec, data).await?;
        data = &data[taken.min(data.len())..];
    }
    Ok(())
}
