//! From "the guest boots" to "its agent answers".

use std::time::Duration;

use tokio::time::{self, Instant};

use crate::{
    client::{AgentClient, Timeouts},
    endpoint::Endpoint,
    error::Error,
    ready::ReadyListener,
};

/// How an agent is sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Wait before the first attempt, when the guest gives no notice.
    pub first: Duration,
    /// Wait between the end of an attempt and the next.
    pub between: Duration,
    /// Longest one attempt may take, connection and health check together.
    pub attempt: Duration,
    /// For the client that comes out.
    pub timeouts: Timeouts,
}

impl Policy {
    /// The pace that suits an endpoint.
    ///
    /// Asking the kernel costs nothing, so that is done at once and often. A `vhost-device-vsock` whose
    /// guest has no driver yet warns at each attempt, and many early attempts have made a guest
    /// unreachable for good, so that is left alone for a while and then asked once a second.
    pub fn for_endpoint(endpoint: &Endpoint, timeouts: Timeouts) -> Self {
        let (first, between) = match endpoint {
            Endpoint::Vsock { .. } => (Duration::ZERO, Duration::from_millis(50)),
            Endpoint::Unix { .. } => (Duration::from_secs(2), Duration::from_secs(1)),
        };
        Self { first, between, attempt: Duration::from_secs(5), timeouts }
    }
}

/// Waits until the guest's agent answers, at most `within`.
///
/// With a listener, the guest's notice comes first and the connection after it. Without one, connections
/// are tried at the policy's pace, each of them fresh.
///
/// # Errors
///
/// [`Error::NoNotice`] or [`Error::Unreachable`], which say what was waited for and where to look, or
/// [`Error::Listen`].
pub async fn reach(
    endpoint: &Endpoint,
    ready: Option<ReadyListener>,
    policy: Policy,
    within: Duration,
) -> Result<AgentClient, Error> {
    let start = Instant::now();
    let Some(listener) = ready else {
        return attempt_until(endpoint, policy.first, policy, start, within).await;
    };
    match time::timeout(within, listener.wait()).await {
        Ok(noticed) => noticed?,
        Err(_) => return Err(Error::NoNotice { path: listener.path().to_owned(), after: within }),
    }
    // From here on a guest can no longer make us accept connections.
    drop(listener);
    attempt_until(endpoint, Duration::ZERO, policy, start, within).await
}

async fn attempt_until(
    endpoint: &Endpoint,
    first: Duration,
    policy: Policy,
    start: Instant,
    within: Duration,
) -> Result<AgentClient, Error> {
    let deadline = start + within;
    let mut pause = first;
    let mut attempts = 0;
    let mut last = Error::Timeout { call: "Connect", after: within };
    while Instant::now() + pause < deadline {
        time::sleep(pause).await;
        pause = policy.between;
        attempts += 1;
        let left = deadline.saturating_duration_since(Instant::now());
        match AgentClient::connect(endpoint, policy.timeouts, policy.attempt.min(left)).await {
            Ok(client) => return Ok(client),
            Err(error) => last = error,
        }
    }
    Err(Error::Unreachable { endpoint: endpoint.to_string(), after: within, attempts, last: Box::new(last) })
}
