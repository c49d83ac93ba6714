//! Signals to a container's processes. SIGKILL is the one that must always work, also in a guest that does not answer.

use std::sync::Arc;

use slog::warn;

use super::{Container, KILL, SIGKILL, supervise, take};
use crate::{
    error::{Error, Result},
    process::{Exit, LOST, State},
};

impl Container {
    /// Sends a signal: to one process, or to `all` of the container.
    ///
    /// # Errors
    /// `NotFound` when the process is not there or has ended, except for SIGKILL, which only asks that it be gone.
    pub(crate) async fn kill(self: &Arc<Self>, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let process = self.process(exec_id)?;
        match process.state() {
            State::Stopped(_) if signal == SIGKILL => return Ok(()),
            State::Stopped(_) => return Err(Error::NotFound("process already finished".into())),
            State::Created if !exec_id.is_empty() => {
                return Err(Error::FailedPrecondition(format!("exec {exec_id} has not been started")));
            }
            State::Created | State::Running => {}
        }
        let target = if all && exec_id.is_empty() { "" } else { &process.guest_id };
        let sent = self.sandbox.ask(self.sandbox.agent().signal_process(&self.id, target, signal));
        let sent = tokio::time::timeout(KILL, sent).await.unwrap_or_else(|_| {
            Err(Error::DeadlineExceeded(format!(
                "signal {signal}: the guest did not answer within {} s",
                KILL.as_secs()
            )))
        });
        // Whoever is told of an end may shut the shim down before this call has its answer, so nobody waits for one here.
        match sent {
            // It ended on its own meanwhile.
            Err(Error::NotFound(_)) if signal == SIGKILL => {}
            Err(error) if signal == SIGKILL && self.owns_sandbox && exec_id.is_empty() => {
                warn!(self.log, "kill: the guest does not do it, its machine is stopped"; "why" => error.to_string());
                self.sandbox.begin_end("SIGKILL, which the guest did not carry out", 0);
            }
            // A pod has containers that nobody has killed, in a guest that may only be busy.
            Err(error @ Error::DeadlineExceeded(_)) if signal == SIGKILL => {
                if !self.sandbox.begin_end_if_lost().await {
                    return Err(error);
                }
            }
            other => other?,
        }
        if process.state() == State::Created && signal == SIGKILL {
            // Beside this call, which waits for no start that hangs.
            tokio::spawn(self.clone().end_unstarted());
        }
        Ok(())
    }

    /// A container that is killed before its start has nobody who waits for its exit.
    async fn end_unstarted(self: Arc<Self>) {
        let _phase = self.phase.lock().await;
        if self.init.state() == State::Created {
            drop(take(&self.io));
            supervise::publish_exit(&self, &self.init, Exit::now(LOST));
        }
    }
}
