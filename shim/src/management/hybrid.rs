//! The guest's vsock for other programs, where it is a device of this shim's: at a socket, in the manner of Firecracker and
//! Cloud Hypervisor, which Kata's tools know as `hvsock`.
//!
//! ```text
//! CONNECT 1024\n -> OK 1073741824\n -> bytes both ways
//! ```

use std::{
    future::Future,
    io,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use agent_client::AGENT_PORT;
use slog::{Logger, debug, warn};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

use super::door;
use crate::{
    error::{Error, Result},
    sandbox::Sandbox,
};

const SOCKET: &str = "vsock.sock";
/// Connections at once; others wait.
const CONNECTIONS: usize = 8;
/// The longest line that asks for a connection, in bytes.
const LINE: usize = 32;
/// How long a program may take to ask, and the guest to take the connection.
const PATIENCE: Duration = Duration::from_secs(5);

fn socket_of(sandbox: &Sandbox) -> PathBuf {
    sandbox.run_dir().join(SOCKET)
}

/// The guest's vsock address, where it is one of the host's.
fn cid(sandbox: &Sandbox) -> Result<Option<u32>> {
    let record = vmm::Record::read(sandbox.run_dir()).map_err(Error::io(sandbox.run_dir().display()))?;
    Ok(record.and_then(|record| record.machine?.cid))
}

/// Where programs of the host reach the agent, as Kata's tools spell it.
///
/// # Errors
/// `Unimplemented` where there is no such place.
pub(super) fn agent_url(sandbox: &Sandbox) -> Result<String> {
    let socket = socket_of(sandbox);
    match cid(sandbox)? {
        Some(cid) => Ok(format!("vsock://{cid}:{AGENT_PORT}")),
        None if socket.exists() => Ok(format!("hvsock://{}:{AGENT_PORT}", socket.display())),
        None => Err(Error::Unimplemented("nothing but the shim reaches the guest's vsock".into())),
    }
}

/// Passes connections on until `ended`, unless the host's kernel does so.
pub(super) fn serve(sandbox: &Arc<Sandbox>, ended: impl Future<Output = ()> + Send + 'static, log: &Logger) {
    if matches!(cid(sandbox), Ok(Some(_))) {
        return;
    }
    let listener = match door::listen(sandbox.run_dir(), SOCKET) {
        Ok(listener) => listener,
        Err(error) => {
            return warn!(log, "the guest's vsock is the shim's alone"; "why" => error.to_string());
        }
    };
    let (sandbox, log) = (Arc::downgrade(sandbox), log.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = accept(listener, sandbox, log) => {}
            () = ended => {}
        }
    });
}

async fn accept(listener: UnixListener, sandbox: Weak<Sandbox>, log: Logger) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(permit) = free.clone().acquire_owned().await {
        let Some(stream) = door::next(&listener).await else { continue };
        let (sandbox, log) = (sandbox.clone(), log.clone());
        tokio::spawn(async move {
            if let Err(error) = pass_on(stream, &sandbox).await {
                debug!(log, "connection to the guest"; "why" => error.to_string());
            }
            drop(permit);
        });
    }
}

async fn pass_on(mut stream: UnixStream, sandbox: &Weak<Sandbox>) -> io::Result<()> {
    let port = timeout(PATIENCE, asked(&mut stream)).await??;
    let gone = || io::Error::from(io::ErrorKind::NotConnected);
    let (vsock, ended) = {
        let sandbox = sandbox.upgrade().ok_or_else(gone)?;
        (sandbox.vsock(), sandbox.nothing_left())
    };
    let mut guest = timeout(PATIENCE, vsock.connect(port)).await??;
    stream.write_all(format!("OK {}\n", guest.local_port).as_bytes()).await?;
    tokio::select! {
        done = copy_bidirectional(&mut stream, &mut guest.stream) => done.map(drop),
        () = ended => Err(gone()),
    }
}

/// Byte by byte: what follows the line is the guest's.
async fn asked(stream: &mut UnixStream) -> io::Result<u32> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        if line.len() == LINE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        line.push(stream.read_u8().await?);
    }
    let port = std::str::from_utf8(&line).ok().and_then(|line| line.trim_end().strip_prefix("CONNECT "));
    port.and_then(|port| port.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
