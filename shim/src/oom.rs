//! Containers that ran out of memory, as the guest reports them.

use std::sync::Arc;

use agent_client::AgentClient;
use containerd_shim_protos::events::task::TaskOOM;
use slog::{Logger, debug, warn};

use crate::{container::Container, events::Events, table::Table};

/// Tells containerd of each until the machine is gone. What the guest calls a container is believed only when the
/// shim has one of that name.
pub(crate) async fn forward(
    agent: AgentClient,
    containers: Arc<Table<Container>>,
    events: Events,
    log: Logger,
) {
    loop {
        let reported = match agent.oom_event().await {
            Ok(reported) => reported,
            Err(error) => {
                debug!(log, "no more out-of-memory events"; "why" => error.to_string());
                return;
            }
        };
        let names = containers.names();
        match reported.known_as(names.iter().map(String::as_str)) {
            Some(container) => {
                warn!(log, "out of memory"; "container" => container);
                events.publish(TaskOOM { container_id: container.to_string(), ..Default::default() });
            }
            None => warn!(log, "the guest reports an out-of-memory event of a container it does not have"),
        }
    }
}
