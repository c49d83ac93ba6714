//! The agent protocol on vsock port 1024.

mod vsock;

use std::{sync::Arc, time::Duration};

use agent_protocol::{agent_ttrpc, health_ttrpc};
use ttrpc::r#async::Server;

use crate::{error::Error, modules, reaper::Reaper, rpc, sandbox::Sandbox};

/// Port the host dials to speak the agent protocol.
const AGENT_PORT: u32 = 1024;

/// Host port that is told, by a connection, that the agent serves.
const READY_PORT: u32 = 1025;

/// How often and how far apart the host is told; it may be a moment late to listen, or not listen at all.
const READY_ATTEMPTS: u32 = 3;
const READY_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the virtual machine ends.
///
/// # Errors
///
/// [`Error::System`] if there is no vsock to serve on.
pub(crate) async fn serve() -> Result<(), Error> {
    let reaper = Reaper::start()?;
    let sandbox = Arc::new(Sandbox::new(reaper)?);
    let mut server = Server::new()
        .add_listener(vsock::listen(AGENT_PORT)?)
        .register_service(agent_ttrpc::create_agent_service(Arc::new(rpc::Agent::new(sandbox))))
        .register_service(health_ttrpc::create_health(Arc::new(rpc::Health)));
    server.start().await.map_err(|error| Error::state(format!("serve the agent protocol: {error}")))?;
    ::log::info!("serving on vsock port {AGENT_PORT}");
    tokio::spawn(tell_host());
    std::future::pending().await
}

async fn tell_host() {
    for attempt in 1..=READY_ATTEMPTS {
        let told = vsock::touch_host(READY_PORT).await;
        if attempt == 1 {
            // Not needed to answer the host, so not before it knows: an emulated CPU takes a while over each.
            modules::drive_virtio_devices();
        }
        match told {
            Ok(()) => return,
            Err(error) => ::log::debug!("tell the host: {error}"),
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
}
