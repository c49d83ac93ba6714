//! The processes of one machine and the files they make in its run directory.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slog::Logger;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::child::{Child, Launch};
use crate::error::{BootError, StopError};
use crate::exit::{VmExit, Who};
use crate::identity::{self, Process};
use crate::record::{self, Record};
use crate::run_dir::{RemoveLater, RunDir};
use crate::selinux::Labelled;
use crate::spec::VmSpec;
use crate::user::{Credentials, User};

/// How long processes have to be reaped after SIGKILL.
const REAP: Duration = Duration::from_secs(5);

/// All that was started for one machine. Dropping it kills the processes and then removes their files.
#[derive(Debug)]
pub(crate) struct Processes {
    children: Mutex<Vec<Arc<Child>>>,
    leftovers: Mutex<Vec<RemoveLater>>,
    record: Mutex<Record>,
    run_dir: RunDir,
    /// Who QEMU is, where it is not who we are.
    user: Option<User>,
    label: Option<Labelled>,
    log: Logger,
    exit: watch::Sender<Option<VmExit>>,
}

/// A program with what it inherits.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub(crate) who: Who,
    pub(crate) path: &'a Path,
    pub(crate) args: Vec<OsString>,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) umask: libc::mode_t,
    /// Who it is; `None` is who we are.
    pub(crate) user: Option<Credentials>,
    /// The network namespace that it is in; `None` is ours.
    pub(crate) network: Option<Arc<OwnedFd>>,
}

impl Processes {
    pub(crate) fn new(
        spec: &VmSpec,
        user: Option<User>,
        label: Option<Labelled>,
        log: Logger,
    ) -> Result<Processes, BootError> {
        let run_dir = RunDir::open(&spec.run_dir)
            .map_err(|source| BootError::Io { doing: format!("open {}", spec.run_dir.display()), source })?;
        let files = [record::RECORD, record::NEXT];
        let leftovers = Mutex::new(files.map(|name| run_dir.remove_later(name)).into());
        let record = Mutex::new(Record::of(spec));
        let exit = watch::Sender::new(None);
        Ok(Processes { children: Mutex::default(), leftovers, record, run_dir, user, label, log, exit })
    }

    pub(crate) fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// Who QEMU is; `None` is who we are.
    pub(crate) fn user(&self) -> Option<Credentials> {
        self.user.as_ref().map(User::credentials)
    }

    pub(crate) fn log(&self) -> &Logger {
        &self.log
    }

    /// Holds the first exit.
    pub(crate) fn exit(&self) -> watch::Receiver<Option<VmExit>> {
        self.exit.subscribe()
    }

    /// Where whoever finds the machine of no more use says so.
    pub(crate) fn exit_sender(&self) -> watch::Sender<Option<VmExit>> {
        self.exit.clone()
    }

    /// Starts `program` in the run directory, where it is recorded for [`crate::sweep`].
    pub(crate) fn start(&self, program: Program<'_>) -> Result<Arc<Child>, BootError> {
        let Program { who, path, args, fds, umask, user, network } = program;
        let refused = |source: io::Error| BootError::Spawn { who, program: path.to_owned(), source };
        let dir = self.run_dir.path().to_owned();
        let (program, label) = (path.to_owned(), self.label.clone());
        let launch = Launch { who, program, args, dir, fds, umask, user, label, network };
        let child = Arc::new(launch.spawn(&self.log, self.exit.clone()).map_err(refused)?);
        lock(&self.children).push(child.clone());
        self.record(|record| record.processes.push(child.process().clone()))?;
        Ok(child)
    }

    /// Records the guest's address.
    pub(crate) fn record_cid(&self, cid: u32) -> Result<(), BootError> {
        self.record(|record| record.machine.iter_mut().for_each(|machine| machine.cid = Some(cid)))
    }

    fn record(&self, change: impl FnOnce(&mut Record)) -> Result<(), BootError> {
        let mut record = lock(&self.record);
        change(&mut record);
        let doing = || format!("record the machine in {}", self.run_dir.path().display());
        record.write(&self.run_dir.short("")).map_err(|source| BootError::Io { doing: doing(), source })
    }

    /// Has `name` in the run directory removed now and in the end; gives its path.
    pub(crate) fn claim(&self, name: &str) -> PathBuf {
        let leftover = self.run_dir.remove_later(name);
        leftover.remove();
        lock(&self.leftovers).push(leftover);
        self.run_dir.path().join(name)
    }

    /// The processes that were started, in that order.
    pub(crate) fn list(&self) -> Vec<Process> {
        lock(&self.children).iter().map(|child| child.process().clone()).collect()
    }

    /// Kills all of them, waits until they are reaped, and removes their files.
    pub(crate) async fn kill(&self) -> Result<(), StopError> {
        let children = lock(&self.children).clone();
        // A daemon's worker dies with it, yet a moment later, and holds the shared directory until then.
        let workers: Vec<OwnedFd> = children.iter().flat_map(|child| child.workers()).collect();
        children.iter().for_each(|child| child.signal(libc::SIGKILL));
        let deadline = Instant::now() + REAP;
        for child in &children {
            child.gone_within(deadline.duration_since(Instant::now())).await;
        }
        for worker in workers {
            let _ = timeout_at(deadline, identity::ended(worker)).await;
        }
        lock(&self.leftovers).iter().for_each(RemoveLater::remove);
        let there = children.iter().filter(|child| !child.is_gone());
        let processes: Vec<Process> = there.map(|child| child.process().clone()).collect();
        if processes.is_empty() { Ok(()) } else { Err(StopError::StillThere { processes, after: REAP }) }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // Explicitly, as somebody may hold one of them a moment longer.
        lock(&self.children).iter().for_each(|child| child.signal(libc::SIGKILL));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
