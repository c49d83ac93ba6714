//! What operators' tools ask of a sandbox, by HTTP on a socket of its own: figures for Prometheus, its volumes, its
//! packet filter.
//!
//! ```text
//! door.rs (the socket, and the place where tools look) -> server.rs (HTTP, bounded) -> routes.rs (who answers what)
//!     -> scrape.rs, volumes.rs, the agent
//! ```

mod ask;
mod calls;
mod door;
mod exposition;
mod hybrid;
mod overhead;
mod process;
mod routes;
mod scrape;
mod server;
#[cfg(test)]
mod tests;
mod volumes;

use std::sync::{Arc, Mutex, Weak};

use prometheus::HistogramVec;
use slog::Logger;

use crate::{container::Container, sandbox::Sandbox, table::Table};
pub(crate) use ask::ask;
pub(crate) use calls::{histogram, timed};
pub(crate) use door::{Door, sweep};
use overhead::Used;

/// What answers.
struct Management {
    /// Not what keeps it alive.
    sandbox: Weak<Sandbox>,
    containers: Arc<Table<Container>>,
    /// How long containerd's calls took.
    calls: HistogramVec,
    /// What had been used when it was last asked for.
    used: Mutex<Option<Used>>,
    log: Logger,
}

/// Answers at the sandbox's door, if it has one, until nothing of the sandbox is left.
pub(crate) fn serve(
    sandbox: &Arc<Sandbox>,
    containers: Arc<Table<Container>>,
    calls: HistogramVec,
    log: &Logger,
) {
    let Some(listener) = sandbox.door().and_then(Door::listener) else { return };
    hybrid::serve(sandbox, sandbox.nothing_left(), log);
    let ended = sandbox.nothing_left();
    let sandbox = Arc::downgrade(sandbox);
    let management = Management { sandbox, containers, calls, used: Mutex::default(), log: log.clone() };
    tokio::spawn(server::serve(listener, Arc::new(management), ended));
}
