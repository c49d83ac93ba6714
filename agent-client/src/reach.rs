//! From "the guest boots" to "its agent answers".

use std::{
    future::pending,
    io,
    pin::{Pin, pin},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time,
};

use crate::{
    client::{AgentClient, Timeouts},
    error::Error,
};

/// The vsock port agents serve on.
pub const AGENT_PORT: u32 = 1024;
/// The port on the host that our guest's agent connects to when it serves.
pub const READY_PORT: u32 = 1025;

/// Wait between the end of an attempt and the next, unless the guest's notice comes first.
const BETWEEN: Duration = Duration::from_millis(50);
/// Longest one attempt may take, connection and health check together.
const ATTEMPT: Duration = Duration::from_secs(5);

/// A connection to [`AGENT_PORT`] on its way.
pub type Dialing<'a, S> = Pin<Box<dyn Future<Output = io::Result<S>> + Send + 'a>>;

/// Waits until the guest's agent answers, at most `within`.
///
/// Connections are tried again and again, each of them a fresh one that `dial` opens. `notice`, if the guest can give one, resolves when its
/// agent serves; the next attempt is made then, and the one under way given up, as it may have met a driver that was
/// not ready for it.
///
/// # Errors
///
/// [`Error::Unreachable`], which says why the last attempt did not do and where to look.
pub async fn reach<'a, S>(
    dial: &(dyn Fn() -> Dialing<'a, S> + Send + Sync),
    notice: Option<impl Future<Output = ()> + Send>,
    timeouts: Timeouts,
    within: Duration,
) -> Result<AgentClient, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
{
    let mut attempts = 0;
    let mut last = Error::Timeout { call: "Connect", after: within };
    let trying = try_until_reached(dial, notice, timeouts, &mut attempts, &mut last);
    match time::timeout(within, trying).await {
        Ok(client) => Ok(client),
        Err(_) => Err(Error::Unreachable { after: within, attempts, last: Box::new(last) }),
    }
}

async fn try_until_reached<'a, S>(
    dial: &(dyn Fn() -> Dialing<'a, S> + Send + Sync),
    notice: Option<impl Future<Output = ()> + Send>,
    timeouts: Timeouts,
    attempts: &mut u32,
    last: &mut Error,
) -> AgentClient
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
{
    let mut noticed = notice.is_none();
    let mut notice = pin!(async {
        match notice {
            Some(notice) => notice.await,
            None => pending().await,
        }
    });
    loop {
        *attempts += 1;
        tokio::select! {
            biased;
            () = &mut notice, if !noticed => {
                noticed = true;
                continue;
            }
            client = AgentClient::connect(dial(), timeouts, ATTEMPT) => match client {
                Ok(client) => return client,
                Err(error) => *last = error,
            }
        }
        tokio::select! {
            () = &mut notice, if !noticed => noticed = true,
            () = time::sleep(BETWEEN) => {}
        }
    }
}
