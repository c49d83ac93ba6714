//! Work that blocks or forks, done in a forked child of the agent.
//!
//! libcontainer is synchronous, changes process-wide state (working directory, `oom_score_adj`, the
//! dumpable flag) and clones with the bare system call, which is only safe where no second thread can hold
//! the allocator's lock. The agent has one thread, so a plain fork gives each job a private copy of it all.
//! The processes a job leaves behind become children of the agent, PID 1, when the worker exits.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, sigaction, sigprocmask},
    unistd::{ForkResult, Pid, fork, pipe2, read, write},
};

use crate::{error::Error, reaper::Reaper, scheduling, stuck};

/// Longest message a worker sends back, in bytes: fits the pipe, so its one write never blocks.
const MAX_REPORT: usize = 16 * 1024;

static IS_WORKER: AtomicBool = AtomicBool::new(false);

/// Whether this process is a fork of the agent, or of one.
pub(crate) fn is_worker() -> bool {
    IS_WORKER.load(Ordering::Relaxed)
}

/// What a worker said at its end. Claim the processes it made before dropping this.
pub(crate) struct Report<'a> {
    pub(crate) text: String,
    _worker: Forked<'a>,
}

/// Runs `job` in a worker that inherits no file but the standard three and `keep`.
///
/// # Errors
///
/// [`Error::Worker`] with the job's own message, [`Error::Timeout`] if it was ended at the deadline.
pub(crate) async fn run<'a, F>(
    reaper: &'a Reaper,
    what: &str,
    keep: &[RawFd],
    deadline: Duration,
    job: F,
) -> Result<Report<'a>, Error>
where
    F: FnOnce() -> Result<String, String>,
{
    let forked = Forked::start(reaper, what, keep, job)?;
    let mut exit = forked.reaper.claim(forked.pid);
    let ended = tokio::time::timeout(deadline, exit.wait_for(Option::is_some)).await.is_ok();
    if !ended {
        let what = format!("{what} ({})", stuck::whereabouts(forked.pid));
        forked.end();
        return Err(Error::Timeout { what, after: deadline });
    }
    Ok(Report { text: forked.report(what)?, _worker: forked })
}

/// A worker at work. While one is, the reaper keeps the exits of processes nobody has claimed yet.
struct Forked<'a> {
    pid: Pid,
    reaper: &'a Reaper,
    report: OwnedFd,
}

impl<'a> Forked<'a> {
    fn start<F>(reaper: &'a Reaper, what: &str, keep: &[RawFd], job: F) -> Result<Self, Error>
    where
        F: FnOnce() -> Result<String, String>,
    {
        let (report, sender) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(Error::system("make a pipe to a worker"))?;
        let mut kept: Vec<RawFd> = keep.to_vec();
        kept.push(sender.as_raw_fd());
        // SAFETY: the agent has one thread, so the child may use the heap and any lock as it finds them.
        match unsafe { fork() }.map_err(Error::system(format!("fork a worker to {what}")))? {
            ForkResult::Child => work(&sender, kept, job),
            ForkResult::Parent { child } => {
                reaper.worker_started();
                Ok(Self { pid: child, reaper, report })
            }
        }
    }

    fn report(&self, what: &str) -> Result<String, Error> {
        let mut buffer = vec![0; MAX_REPORT];
        let len = read(&self.report, &mut buffer).unwrap_or(0);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match buffer[..len].split_first() {
            Some((1, rest)) => Ok(text(rest)),
            Some((_, rest)) => Err(Error::Worker(text(rest))),
            None => Err(Error::Worker(format!("{what}: the worker ended without a word"))),
        }
    }

    /// Ends the worker and what it has forked but not yet handed over.
    fn end(&self) {
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        let children = fs::read_to_string(path).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // ESRCH: it has ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

impl Drop for Forked<'_> {
    fn drop(&mut self) {
        self.reaper.worker_done();
    }
}

/// The life of the worker itself.
fn work<F>(sender: &OwnedFd, kept: Vec<RawFd>, job: F) -> !
where
    F: FnOnce() -> Result<String, String>,
{
    let outcome =
        leave_the_agent(kept).map_err(|error| format!("prepare a worker: {error}")).and_then(|()| {
            catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|_| Err("the worker panicked".to_owned()))
        });
    let (tag, mut text) = match outcome {
        Ok(text) => (1, text.into_bytes()),
        Err(text) => (0, text.into_bytes()),
    };
    text.insert(0, tag);
    text.truncate(MAX_REPORT);
    // The parent sees the exit in any case.
    let _ = write(sender, &text);
    // SAFETY: ends the process without running the agent's own exit handlers.
    unsafe { libc::_exit(0) }
}

/// What every fork of the agent does first: it is scheduled and signalled as any process, and has no file of the agent's
/// but the standard three and `kept`.
pub(crate) fn leave_the_agent(kept: Vec<RawFd>) -> io::Result<()> {
    IS_WORKER.store(true, Ordering::Relaxed);
    scheduling::as_any()?;
    restore_signals()?;
    close_all_but(kept)
}

/// Containers must not inherit the agent's ways with signals: Rust ignores SIGPIPE, the event loop handles
/// SIGCHLD by writing to a descriptor that is closed in the worker.
fn restore_signals() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGCHLD, Signal::SIGPIPE] {
        // SAFETY: the default action runs no code of ours.
        unsafe { sigaction(signal, &default) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Closes every descriptor from 3 up that is not in `kept`: a container that is created but not yet started
/// would otherwise hold the pipes of all the others open.
fn close_all_but(mut kept: Vec<RawFd>) -> io::Result<()> {
    kept.sort_unstable();
    let mut from = 3;
    for fd in kept.into_iter().chain([RawFd::MAX]) {
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = from.max(fd.saturating_add(1));
    }
    Ok(())
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: the descriptors belong to objects of the agent that this process never touches again.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
