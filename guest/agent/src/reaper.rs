//! The ends of processes: PID 1 is the parent of every container's process and of every orphan.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{errno::Errno, unistd::Pid};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::error::Error;

/// How a process ended as a shell would say it: its exit status, or 128 and the signal that ended it.
pub(crate) type ExitStatus = i32;

/// Turns SIGCHLD into one watch per claimed process. Everything else that ends is reaped and forgotten.
#[derive(Default)]
pub(crate) struct Reaper {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    claimed: HashMap<Pid, watch::Sender<Option<ExitStatus>>>,
    /// Ends of processes that a running worker has made but not yet told us about.
    unclaimed: HashMap<Pid, ExitStatus>,
    workers: usize,
}

impl Reaper {
    /// Starts reaping, on the event loop this is called in.
    pub(crate) fn start() -> Result<Arc<Self>, Error> {
        let mut ended = signal(SignalKind::child()).map_err(Error::system("watch for SIGCHLD"))?;
        let reaper = Arc::new(Self::default());
        let this = Arc::clone(&reaper);
        tokio::spawn(async move {
            while ended.recv().await.is_some() {
                this.reap();
            }
        });
        Ok(reaper)
    }

    /// The exit of `pid`, a child of this process that nobody else waits for.
    pub(crate) fn claim(&self, pid: Pid) -> watch::Receiver<Option<ExitStatus>> {
        let mut state = self.state();
        let early = state.unclaimed.remove(&pid);
        let (sender, receiver) = watch::channel(early);
        if early.is_none() {
            state.claimed.insert(pid, sender);
        }
        receiver
    }

    /// The exit of `pid`, a fork of this process that it has made since it last looked for ends.
    pub(crate) fn adopt(&self, pid: Pid) -> watch::Receiver<Option<ExitStatus>> {
        // An earlier process of that id, whose end nobody has asked for.
        self.state().unclaimed.remove(&pid);
        self.claim(pid)
    }

    pub(crate) fn worker_started(&self) {
        self.state().workers += 1;
    }

    /// Call after the processes the worker made have been claimed, or given up.
    pub(crate) fn worker_done(&self) {
        let mut state = self.state();
        state.workers -= 1;
        if state.workers == 0 {
            state.unclaimed.clear();
        }
    }

    fn reap(&self) {
        loop {
            let mut status = 0;
            // SAFETY: `status` outlives the call. The safe wrapper cannot tell of a death by a real-time
            // signal and would lose it.
            match Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }) {
                Ok(0) | Err(Errno::ECHILD) => return,
                Ok(pid) => self.ended(Pid::from_raw(pid), exit_status(status)),
                Err(Errno::EINTR) => {}
                Err(error) => return ::log::error!("reap: {error}"),
            }
        }
    }

    fn ended(&self, pid: Pid, status: ExitStatus) {
        let mut state = self.state();
        match state.claimed.remove(&pid) {
            Some(claim) => {
                claim.send_replace(Some(status));
            }
            None if state.workers > 0 => {
                state.unclaimed.insert(pid, status);
            }
            None => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exit_status(status: libc::c_int) -> ExitStatus {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_a_shell() {
        assert_eq!(exit_status(255 << 8), 255);
        assert_eq!(exit_status(0), 0);
        assert_eq!(exit_status(libc::SIGKILL), 137);
        assert_eq!(exit_status(libc::SIGSEGV | 0x80), 139);
        assert_eq!(exit_status(40), 168);
    }

    #[test]
    fn an_exit_before_the_claim_is_kept_while_a_worker_runs() {
        let reaper = Reaper::default();
        reaper.worker_started();
        reaper.ended(Pid::from_raw(7), 42);
        assert_eq!(*reaper.claim(Pid::from_raw(7)).borrow(), Some(42));
        reaper.ended(Pid::from_raw(8), 1);
        reaper.worker_done();
        assert_eq!(*reaper.claim(Pid::from_raw(8)).borrow(), None);
    }

    #[test]
    fn a_fork_is_not_taken_for_one_that_ended_before_it() {
        let reaper = Reaper::default();
        reaper.worker_started();
        reaper.ended(Pid::from_raw(7), 42);
        let exit = reaper.adopt(Pid::from_raw(7));
        assert_eq!(*exit.borrow(), None);
        reaper.ended(Pid::from_raw(7), 1);
        assert_eq!(*exit.borrow(), Some(1));
    }

    #[test]
    fn an_exit_after_the_claim_is_published() {
        let reaper = Reaper::default();
        let exit = reaper.claim(Pid::from_raw(9));
        reaper.ended(Pid::from_raw(9), 137);
        assert_eq!(*exit.borrow(), Some(137));
    }
}
