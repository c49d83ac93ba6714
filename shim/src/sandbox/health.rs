//! Does the guest's agent still answer? Containers of one that does not can be neither asked nor ended, so its machine is as
//! good as gone.

use std::time::Duration;

use agent_client::AgentClient;
use tokio::time::{sleep, timeout};
use vmm::accelerator::Accelerator;

/// Why a sandbox ends whose agent does not answer.
pub(super) const LOST: &str = "the guest's agent does not answer: the guest hangs, or has no time for it";

/// How the agent of one guest is looked after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Health {
    /// How long nothing is asked.
    pause: Duration,
    /// How long an answer may take.
    patience: Duration,
}

impl Health {
    /// Of a guest with such processors. Emulated ones on a busy host are seconds late as a matter of course.
    pub(super) fn of(accelerator: Accelerator) -> Health {
        let seconds = match accelerator {
            Accelerator::Kvm => 7,
            Accelerator::Tcg => 30,
        };
        Health { pause: Duration::from_secs(5), patience: Duration::from_secs(seconds) }
    }

    /// Resolves when the agent has missed two questions in a row.
    pub(super) async fn lost(self, agent: AgentClient) {
        loop {
            sleep(self.pause).await;
            if !self.answers(&agent).await && !self.answers(&agent).await {
                return;
            }
        }
    }

    /// Whether it answers one question.
    pub(super) async fn answers(self, agent: &AgentClient) -> bool {
        timeout(self.patience, agent.check()).await.is_ok_and(|answer| answer.is_ok())
    }
}
