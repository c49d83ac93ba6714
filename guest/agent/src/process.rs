//! One process of a container: how to stop it, how it ended, its streams.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::{errno::Errno, unistd::Pid};
use tokio::sync::watch;

use crate::{cgroup, error::Error, reaper::ExitStatus, stdio::Stdio};

/// A process that has been made. Its end is known by the watch, never by its id, which the kernel may give
/// to another process as soon as the end has been seen.
pub(crate) struct Process {
    pid: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
    stdio: Stdio,
    reported: AtomicBool,
}

impl Process {
    pub(crate) fn new(pid: Pid, exit: watch::Receiver<Option<ExitStatus>>, stdio: Stdio) -> Self {
        Self { pid, exit, stdio, reported: AtomicBool::new(false) }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn stdio(&self) -> &Stdio {
        &self.stdio
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Whether the host knows all there is to know of it.
    pub(crate) fn is_settled(&self) -> bool {
        self.reported.load(Ordering::Relaxed) && self.has_ended() && self.stdio.drained()
    }

    /// How it ended, once it has.
    pub(crate) async fn wait(&self) -> ExitStatus {
        let status = self.ended().await;
        self.reported.store(true, Ordering::Relaxed);
        status
    }

    /// As [`Self::wait`], but on the guest's own account.
    pub(crate) async fn ended(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let status = match exit.wait_for(Option::is_some).await {
            Ok(status) => *status,
            // The reaper drops its end only after it has told the status.
            Err(_) => *self.exit.borrow(),
        };
        status.unwrap_or(255)
    }

    /// Sends a signal to this process alone.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it has ended, [`Error::Invalid`] for a number that is no signal.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), Error> {
        let gone = || Error::NotFound { kind: "process", id: self.pid.to_string() };
        // Nothing is reaped between this look and the signal: both are on the agent's one thread.
        if self.has_ended() {
            return Err(gone());
        }
        match cgroup::send(self.pid, signal) {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(gone()),
            Err(Errno::EINVAL) => Err(Error::invalid(format!("signal {signal}: no such signal"))),
            Err(error) => Err(Error::system(format!("send signal {signal} to {}", self.pid))(error)),
        }
    }
}
