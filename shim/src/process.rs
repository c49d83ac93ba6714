//! One process in the guest: a container's first, or an exec.
//!
//! ```text
//! Created --start--> Running --exit--> Stopped        (Created --sandbox dies--> Stopped)
//! ```

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use containerd_shim_protos::{api, protobuf::well_known_types::timestamp::Timestamp};
use tokio::{net::unix::pipe::Receiver, sync::watch};

use crate::{
    error::Result,
    stdio::{Paths, stdin},
};

/// The status of a process that its virtual machine took along: as if killed by SIGKILL.
pub(crate) const LOST: u32 = 128 + 9;
/// The status of a process that never ran.
pub(crate) const NEVER_RAN: u32 = 255;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 0 to 255, as a shell would show it: 128 + the signal when one killed it.
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

impl Exit {
    /// An exit that happened just now.
    pub(crate) fn now(status: u32) -> Exit {
        Exit { status, at: SystemTime::now() }
    }

    /// The time as containerd's messages carry it.
    pub(crate) fn timestamp(&self) -> Timestamp {
        timestamp(self.at)
    }
}

/// A time as containerd's messages carry it.
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos().cast_signed(),
        ..Default::default()
    }
}

/// Where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    Running,
    Stopped(Exit),
}

/// The client's end of the input.
enum Input {
    Unopened,
    Held(#[expect(dead_code, reason = "held for its open descriptor alone")] stdin::Held),
    /// The client has said that nothing more comes.
    Closed,
}

/// A process as the shim knows it. Its state is published; nobody who looks at it waits for anybody.
pub(crate) struct Process {
    /// containerd's name of the exec; empty for a container's first process.
    pub(crate) exec_id: String,
    /// The guest's name of it.
    pub(crate) guest_id: String,
    pub(crate) stdio: Paths,
    state: watch::Sender<State>,
    input: Mutex<Input>,
    /// What an exec is to run, until its start takes it.
    spec: Mutex<Option<oci_spec::runtime::Process>>,
}

impl Process {
    pub(crate) fn new(exec_id: &str, guest_id: &str, stdio: Paths) -> Process {
        Process {
            exec_id: exec_id.to_string(),
            guest_id: guest_id.to_string(),
            stdio,
            state: watch::Sender::new(State::Created),
            input: Mutex::new(Input::Unopened),
            spec: Mutex::new(None),
        }
    }

    /// An exec: its first start takes `spec`.
    pub(crate) fn with_spec(mut self, spec: oci_spec::runtime::Process) -> Process {
        self.spec = Mutex::new(Some(spec));
        self
    }

    /// What the exec is to run, once: `None` for every start but the first.
    pub(crate) fn take_spec(&self) -> Option<oci_spec::runtime::Process> {
        lock(&self.spec).take()
    }

    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Created to Running; a process that has already ended stays so.
    pub(crate) fn set_running(&self) {
        self.state.send_if_modified(|state| {
            let starts = *state == State::Created;
            if starts {
                *state = State::Running;
            }
            starts
        });
    }

    /// Publishes the exit. The first one counts: tells whether this was it.
    pub(crate) fn set_stopped(&self, exit: Exit) -> bool {
        self.state.send_if_modified(|state| {
            let ends = !matches!(state, State::Stopped(_));
            if ends {
                *state = State::Stopped(exit);
            }
            ends
        })
    }

    /// Resolves when the process runs, has ended without, or is forgotten; does not keep it.
    pub(crate) fn begun(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut states = self.state.subscribe();
        async move {
            let _ = states.wait_for(|state| *state != State::Created).await;
        }
    }

    /// Waits, for ever if need be, until the process has ended.
    pub(crate) async fn exited(&self) -> Exit {
        let mut states = self.state.subscribe();
        loop {
            if let State::Stopped(exit) = *states.borrow_and_update() {
                return exit;
            }
            // The sender lives in self, which this borrow keeps alive.
            let _ = states.changed().await;
        }
    }

    /// Opens the client's input, and keeps it open until [`Process::close_input`], which a quick client may have
    /// asked for already. To be done when the process is started: the client's end opens with it, and a client that
    /// knows of no process yet has nobody to tell of its end.
    ///
    /// # Errors
    /// Names the FIFO.
    pub(crate) fn open_input(&self) -> Result<Option<Receiver>> {
        let Some((input, held)) = stdin::open(&self.stdio.stdin)? else { return Ok(None) };
        let mut state = lock(&self.input);
        if !matches!(*state, Input::Closed) {
            *state = Input::Held(held);
        }
        Ok(Some(input))
    }

    /// As before [`Process::open_input`]: the start failed.
    pub(crate) fn let_go_of_input(&self) {
        let mut state = lock(&self.input);
        if matches!(*state, Input::Held(_)) {
            *state = Input::Unopened;
        }
    }

    /// Lets the input end once the client's side is closed and all of it was read.
    pub(crate) fn close_input(&self) {
        *lock(&self.input) = Input::Closed;
    }

    /// The status containerd's State shows; `paused` is the container's business.
    pub(crate) fn status(&self, paused: bool) -> api::Status {
        match self.state() {
            State::Created => api::Status::CREATED,
            State::Running if paused => api::Status::PAUSED,
            State::Running => api::Status::RUNNING,
            State::Stopped(_) => api::Status::STOPPED,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process::new("", "c1", Paths::default())
    }

    #[tokio::test]
    async fn the_first_exit_counts_and_everybody_who_waits_hears_it() {
        let process = process();
        let exit = Exit::now(3);
        let (first, second, ended) =
            tokio::join!(process.exited(), process.exited(), async { process.set_stopped(exit) });
        assert!(ended && first == exit && second == exit);
        assert!(!process.set_stopped(Exit::now(LOST)), "a later exit changes nothing");
        assert_eq!(process.exited().await, exit);
    }

    #[test]
    fn what_has_ended_does_not_run_again() {
        let process = process();
        process.set_stopped(Exit::now(0));
        process.set_running();
        assert!(matches!(process.state(), State::Stopped(_)));
    }

    #[test]
    fn only_a_running_process_shows_as_paused() {
        let process = process();
        assert_eq!(process.status(true), api::Status::CREATED);
        process.set_running();
        assert_eq!(process.status(true), api::Status::PAUSED);
        assert_eq!(process.status(false), api::Status::RUNNING);
    }
}
