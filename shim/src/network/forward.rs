//! Ports of the guest's own loopback, on that of the pod's network namespace on the host, which is where containerd looks
//! for them (`kubectl port-forward`), and finds nobody, as the pod's processes are not there.
//!
//! ```text
//! whoever connects to localhost in the namespace -- lookup -> a socket of ours -> vsock -> agent -> server in the pod
//! ```

mod lookup;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_protocol::forward::{Carried, FORWARD_PORT, Target};
use futures::future::OptionFuture;
use slog::{Logger, debug, info, warn};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{sleep, timeout},
};
use vmm::{Stream, Vsock};

use super::namespace::{self, Identity};
use crate::{
    error::{Error, Result},
    sandbox::Sandbox,
    thread,
};

/// Most connections at once.
const MOST: usize = 256;
/// How long a guest may take to say whether its agent forwards. Nobody waits for that.
const FINDING_OUT: Duration = Duration::from_secs(60);
/// How long it may take to connect, which is longer than its agent gives a server.
const CONNECTING: Duration = Duration::from_secs(30);
/// Pause after a refused accept, which is most likely a lack of descriptors that lasts.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

const NOT_REACHED: &str = "kubectl port-forward does not reach the pod";

/// What has connections to localhost in one namespace come to the shim, until it is dropped.
struct Door {
    _link: OwnedFd,
    v4: TcpListener,
    /// Where there is IPv6.
    v6: Option<TcpListener>,
}

impl Door {
    /// On a thread of its own, which is in the namespace from here on.
    fn open(path: &Path, expected: Identity) -> Result<Door> {
        let entered = namespace::enter(path)?;
        if entered.is_the_hosts() {
            return Err(Error::FailedPrecondition("it is in the host's own network namespace".into()));
        }
        if entered != expected {
            return Err(Error::FailedPrecondition(format!("{} is another namespace by now", path.display())));
        }
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("a socket on 127.0.0.1"))?;
        let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok();
        let link = lookup::give_localhost_to(&v4, v6.as_ref(), namespace::own()?).map_err(Error::Failed)?;
        Ok(Door { _link: link, v4, v6 })
    }
}

/// Has who connects to localhost in the network namespace of `sandbox`' pod reach the guest's, as long as its machine
/// runs, if there is such a namespace, its agent forwards, and the host's kernel can do it.
pub(crate) fn offer(sandbox: &Sandbox, log: &Logger) {
    let Some((path, namespace)) = sandbox.network().forwards_from() else { return };
    let (vsock, going, log) = (sandbox.vsock(), sandbox.going(), log.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = going => {}
            () = run(path, namespace, vsock, log) => {}
        }
    });
}

async fn run(path: PathBuf, namespace: Identity, vsock: Arc<dyn Vsock>, log: Logger) {
    if let Err(why) = within(FINDING_OUT, vsock.connect(FORWARD_PORT)).await {
        return info!(log, "the guest's agent forwards no ports: {NOT_REACHED}";
            "why" => why.to_string());
    }
    match thread::run("forward", move || Door::open(&path, namespace)).await {
        Ok(door) => {
            if let Err(why) = serve(door, &vsock, &log).await {
                warn!(log, "{NOT_REACHED}"; "why" => why.to_string());
            }
        }
        Err(why) => warn!(log, "{NOT_REACHED}"; "why" => why.to_string()),
    }
}

/// Until it is dropped, and the connections with it.
///
/// # Errors
/// The kernel's refusal to wait for connections.
async fn serve(Door { _link, v4, v6 }: Door, vsock: &Arc<dyn Vsock>, log: &Logger) -> io::Result<()> {
    let (v4, v6) = (waiting(v4)?, v6.map(waiting).transpose()?);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            // Those that have ended do not count.
            Some(_) = connections.join_next() => continue,
            accepted = v4.accept() => accepted,
            accepted = OptionFuture::from(v6.as_ref().map(|v6| v6.accept())), if v6.is_some() => {
                accepted.unwrap_or_else(|| Err(io::ErrorKind::AddrNotAvailable.into()))
            }
        };
        match accepted.and_then(|(stream, _)| Carried::with_target(stream)) {
            Ok(_) if connections.len() >= MOST => {
                warn!(log, "{MOST} connections are forwarded to the guest: another one is reset");
            }
            Ok((stream, target)) => {
                connections.spawn(forward(stream, target, vsock.clone(), log.clone()));
            }
            Err(why) => {
                warn!(log, "a connection to be forwarded is not accepted"; "why" => why.to_string());
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn waiting(listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// What fails resets the connection, by which whoever made it knows.
async fn forward(stream: Carried, target: Target, vsock: Arc<dyn Vsock>, log: Logger) {
    let forwarded = async { stream.over(within(CONNECTING, ask(vsock.as_ref(), target)).await?).await };
    if let Err(why) = forwarded.await {
        debug!(log, "a connection to the guest was broken off"; "port" => target.port, "why" => why.to_string());
    }
}

/// A connection with what listens there in the guest.
async fn ask(vsock: &dyn Vsock, target: Target) -> io::Result<Box<dyn Stream>> {
    let mut guest = vsock.connect(FORWARD_PORT).await?.stream;
    guest.write_all(&target.to_bytes()).await?;
    match guest.read_u8().await? {
        0 => Ok(guest),
        number => Err(io::Error::from_raw_os_error(number.into())),
    }
}

async fn within<T>(limit: Duration, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, what).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
