//! The standard streams of a process, between the guest's agent and where containerd wants them.
//!
//! stdin:  FIFO -> [`pump::feed`] -> connection, or agent WriteStdin ... CloseStdin
//! stdout: connection, or agent ReadStdout -> [`pump::drain`] -> [`sink::Sink`] (FIFO, file, logger process)

pub(crate) mod logger;
pub(crate) mod pump;
pub(crate) mod sink;
pub(crate) mod stdin;
pub(crate) mod wires;

/// A process's streams, both ends open, until its start has them moved.
pub(crate) struct Io {
    pub(crate) input: Option<tokio::net::unix::pipe::Receiver>,
    pub(crate) output: sink::Sinks,
    pub(crate) wires: wires::Wires,
    pub(crate) terminal: bool,
}

/// Where a client wants a process's streams, as containerd spells it in Create and Exec: FIFO paths, or URIs for
/// output; empty for none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// One terminal instead of three streams: no stderr of its own then.
    pub(crate) terminal: bool,
}
