//! One connection to an agent, and how a call on it is made.

use std::{
    fmt,
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_protocol::{
    agent::GuestDetailsResponse, agent_ttrpc::AgentServiceClient, health_ttrpc::HealthClient,
};
use prometheus::HistogramVec;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OnceCell, watch},
    time,
};
use ttrpc::r#async::{Client, transport::Socket};

use crate::{durations, error::Error, transport::Watched};

/// How long the guest may take to answer.
///
/// Calls that wait for something to happen in the guest have no deadline: waiting for a process, reading
/// its output, waiting for an out-of-memory event. They end with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the health check.
    pub check: Duration,
    /// For creating a sandbox or a container: devices are mounted, hooks run.
    pub create: Duration,
    /// For every other call.
    pub call: Duration,
}

impl Default for Timeouts {
    /// 30 s for the health check, 60 s for the rest, as the field's runtimes have it.
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { check: Duration::from_secs(30), create: minute, call: minute }
    }
}

/// A connection to the guest's agent. Clones share it; it closes with the last of them.
///
/// Dropping a call's future gives up its answer but not its request: a request half written would cost
/// every other call the connection.
#[derive(Clone)]
pub struct AgentClient {
    pub(crate) agent: AgentServiceClient,
    pub(crate) health: HealthClient,
    pub(crate) timeouts: Timeouts,
    /// What the agent says of itself, which does not change.
    pub(crate) details: Arc<OnceCell<GuestDetailsResponse>>,
    durations: HistogramVec,
    gone: watch::Receiver<()>,
}

impl fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClient").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

impl AgentClient {
    /// Takes the stream that `dial` gives and asks the agent for its health, all within `within`.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] when there is no connection, else those of [`check`](Self::check).
    pub async fn connect<S>(
        dial: impl Future<Output = io::Result<S>>,
        timeouts: Timeouts,
        within: Duration,
    ) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
    {
        let attempt = async {
            let client = Self::over(dial.await.map_err(Error::Connect)?, timeouts);
            client.check().await.map(|()| client)
        };
        let late = |_| Error::Timeout { call: "Connect", after: within };
        time::timeout(within, attempt).await.map_err(late)?
    }

    /// Over a stream whose other end is an agent. To be called inside a tokio runtime.
    pub fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
        timeouts: Timeouts,
    ) -> Self {
        let (stream, gone) = Watched::new(stream);
        let client = Client::new(Socket::new(stream));
        Self {
            agent: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client),
            timeouts,
            details: Arc::default(),
            durations: durations::histogram(),
            gone,
        }
    }

    /// Resolves when the connection is gone; does not keep it open.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut gone = self.gone.clone();
        async move { while gone.changed().await.is_ok() {} }
    }

    /// How long calls have taken, in milliseconds, by what was asked.
    pub fn durations(&self) -> &HistogramVec {
        &self.durations
    }

    pub(crate) fn is_open(&self) -> bool {
        self.gone.has_changed().is_ok()
    }

    /// Makes a call; `limit` is its deadline, if it has one.
    ///
    /// The request runs in a task of its own, because ttrpc closes the whole connection when a request is
    /// dropped half written. No deadline is told to the guest: ttrpc servers drop a handler at its
    /// deadline, at any point of its work.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        call: &'static str,
        limit: Option<Duration>,
        request: impl Future<Output = ttrpc::Result<T>> + Send + 'static,
    ) -> Result<T, Error> {
        let began = Instant::now();
        let answer = tokio::spawn(async move {
            match limit {
                Some(limit) => time::timeout(limit, request).await.map_err(|_| limit),
                None => Ok(request.await),
            }
        });
        let answer = answer.await;
        durations::note(&self.durations, call, began.elapsed());
        match answer {
            Ok(Ok(reply)) => reply.map_err(|error| Error::from_ttrpc(call, error, self.is_open())),
            Ok(Err(after)) => Err(Error::Timeout { call, after }),
            // The runtime is shutting down.
            Err(_) => Err(Error::Closed { call }),
        }
    }
}
