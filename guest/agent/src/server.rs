//! The agent protocol on vsock port 1024, streams of processes on port 1027, ports that are forwarded on port 1028, and
//! questions for names on port 1029.

mod vsock;

use std::{sync::Arc, time::Duration};

use agent_protocol::{agent_ttrpc, forward::FORWARD_PORT, health_ttrpc};
use ttrpc::r#async::Server;

use crate::{
    error::Error, forward::Forwarded, modules, network::names, reaper::Reaper, rpc, sandbox::Sandbox,
    stdio::arrivals::Arrivals,
};
use vsock::HostListener;

/// Port the host dials to speak the agent protocol.
const AGENT_PORT: u32 = 1024;

/// Host port that is told, by a connection, that the agent serves.
const READY_PORT: u32 = 1025;

/// Port the host dials to have a connection that becomes a stream of a process. The agents in the field that know
/// requests with ports for streams listen here too, when they are told to.
const STREAM_PORT: u32 = 1027;

/// Bytes of a process' input that may wait for the agent: the more there is at once, the fewer times the one processor of a
/// small guest turns from the process to the agent and back.
const STREAM_ROOM: u64 = 1024 * 1024;

/// Port the host dials where it has answers to questions for names.
const NAMES_PORT: u32 = 1029;

/// How often and how far apart the host is told; it may be a moment late to listen, or not listen at all.
const READY_ATTEMPTS: u32 = 3;
const READY_PAUSE: Duration = Duration::from_millis(100);

/// When drivers nobody waits for are loaded: so long after the start of the first container, and of the agent.
const DRIVE_PAUSE: Duration = Duration::from_millis(500);
const DRIVE_AFTER: Duration = Duration::from_secs(5);

/// Serves until the virtual machine ends.
///
/// # Errors
///
/// [`Error::System`] if there is no vsock to serve on.
pub(crate) async fn serve() -> Result<(), Error> {
    let reaper = Reaper::start()?;
    let sandbox = Arc::new(Sandbox::new(reaper)?);
    // Before the host is told that it may call.
    let streams = HostListener::bind(STREAM_PORT)?.with_room(STREAM_ROOM)?;
    let names = HostListener::bind(NAMES_PORT)?;
    let forwarded = HostListener::bind(FORWARD_PORT)?;
    let mut server = Server::new()
        .add_listener(HostListener::bind(AGENT_PORT)?.into_ttrpc())
        .register_service(agent_ttrpc::create_agent_service(Arc::new(rpc::Agent::new(sandbox.clone()))))
        .register_service(health_ttrpc::create_health(Arc::new(rpc::Health)));
    server.start().await.map_err(|error| Error::state(format!("serve the agent protocol: {error}")))?;
    ::log::info!("serving on vsock port {AGENT_PORT}");
    tokio::spawn(tell_host());
    tokio::spawn(serve_names(names));
    tokio::spawn(drive_devices(Arc::clone(&sandbox)));
    tokio::spawn(async move { receive_forwarded(&forwarded).await });
    receive_streams(&streams, sandbox.arrivals()).await
}

/// One connection after the other: there is one place to answer at.
async fn serve_names(listener: HostListener) {
    loop {
        let served = match listener.accept().await {
            Ok((stream, _)) => names::serve(stream).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            ::log::info!("names that the host knows: {error}");
        }
    }
}

async fn receive_streams(listener: &HostListener, arrivals: &Arrivals) -> ! {
    loop {
        match listener.accept().await {
            Ok((stream, port)) => arrivals.add(port, Box::new(stream)),
            Err(error) => ::log::warn!("accept a connection for a stream: {error}"),
        }
    }
}

async fn receive_forwarded(listener: &HostListener) -> ! {
    let forwarded = Forwarded::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => forwarded.add(stream),
            Err(error) => ::log::warn!("accept a connection to be forwarded: {error}"),
        }
    }
}

/// Loads drivers nobody waits for: what a storage needs is loaded with it. An emulated CPU takes a while over each, so
/// not while the host waits for its first container.
async fn drive_devices(sandbox: Arc<Sandbox>) {
    let _ = tokio::time::timeout(DRIVE_AFTER, sandbox.first_start()).await;
    tokio::time::sleep(DRIVE_PAUSE).await;
    modules::drive_virtio_devices();
    modules::drive_panic_device();
}

async fn tell_host() {
    for _ in 0..READY_ATTEMPTS {
        match vsock::touch_host(READY_PORT).await {
            Ok(()) => return,
            Err(error) => ::log::debug!("tell the host: {error}"),
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
}
