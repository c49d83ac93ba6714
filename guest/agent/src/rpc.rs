//! The agent protocol: each method asks one thing of the rest of the agent and says what came of it.

mod agent;
mod health;
mod streams;
mod system;
mod volume;

use std::{future::Future, sync::Arc};

pub(crate) use health::Health;

use crate::{error::Error, sandbox::Sandbox};

/// The service `grpc.AgentService`.
pub(crate) struct Agent {
    sandbox: Arc<Sandbox>,
}

impl Agent {
    pub(crate) fn new(sandbox: Arc<Sandbox>) -> Self {
        Self { sandbox }
    }
}

/// Runs `work` to its end even if the caller's deadline drops the method: half a container is worse than
/// one that nobody waited for.
async fn to_the_end<T, F>(work: F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Worker(error.to_string())),
    }
}
