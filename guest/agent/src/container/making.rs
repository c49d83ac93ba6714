//! From a description to a process with streams.

use std::{os::fd::OwnedFd, time::Duration};

use nix::unistd::{Pid, read};
use oci_spec::runtime::{Process as Description, Spec};
use tokio::io::Interest;

use crate::{
    cgroup::{self, Cgroup},
    error::Error,
    id::Id,
    process::Process,
    readiness,
    reaper::Reaper,
    runtime::{Create, Failure, join::Exec},
    stdio::{self, Prepared, arrivals::Connections},
    worker::{self, Report},
};

/// How long the making of a container or process may take, on the slowest of emulated machines.
pub(super) const MAKE: Duration = Duration::from_secs(60);

/// Longest message of a process that cannot execute its program, in bytes.
const MAX_MESSAGE: usize = 4096;

/// The reading end of [`Failure`].
pub(super) struct Failed(OwnedFd);

impl Failed {
    /// Returns once the process has executed its program, or ended without.
    ///
    /// # Errors
    ///
    /// [`Error::Worker`] with the reason it gave.
    pub(super) async fn unless_executed(self, what: &str) -> Result<(), Error> {
        let pipe = readiness::watch(self.0, Interest::READABLE).map_err(Error::system(what))?;
        let mut message = vec![0; MAX_MESSAGE];
        let said = pipe.async_io(Interest::READABLE, |pipe| Ok(read(pipe, &mut message)?));
        let timeout = |_| Error::Timeout { what: what.to_owned(), after: MAKE };
        match tokio::time::timeout(MAKE, said).await.map_err(timeout)?.map_err(Error::system(what))? {
            0 => Ok(()),
            len => Err(Error::Worker(String::from_utf8_lossy(&message[..len]).into_owned())),
        }
    }
}

/// Makes the first process of a container, and the container with it.
pub(super) async fn init(
    reaper: &Reaper,
    id: &Id,
    spec: &mut Spec,
    connections: Connections,
) -> Result<(Process, Failed), Error> {
    let process = description(spec)?;
    let (owner, size) = (owner(process), size(process));
    let (child, prepared) = match process.terminal() {
        Some(true) => stdio::prepare_console(connections)?,
        _ => stdio::prepare(owner, connections)?,
    };
    let failure = Failure::new()?;
    let failed = failure.reader.try_clone().map_err(Error::system("duplicate a pipe"))?;
    let create = Create { id, spec: &mut *spec, stdio: child, failure };
    let what = format!("create container {id}");
    let made = worker::run(reaper, &what, &create.fds(), MAKE, move || create.run()).await;
    let completed = made.and_then(|report| complete(reaper, &report, prepared, owner, size));
    if completed.is_err() {
        // The library cleans up after its own errors, but not after ours and not after a deadline.
        let _ = Cgroup::of(id).signal(libc::SIGKILL);
    }
    Ok((completed?, Failed(failed)))
}

/// Makes a process in a running container, and has it execute its program.
pub(super) async fn exec(
    reaper: &Reaper,
    cgroup: &Cgroup,
    init: Pid,
    spec: &Spec,
    description: &Description,
    connections: Connections,
) -> Result<Process, Error> {
    let owner = owner(description);
    let (stdio, prepared) = match description.terminal() {
        Some(true) => stdio::prepare_terminal(connections)?,
        _ => stdio::prepare(owner, connections)?,
    };
    let Failure { reader, writer } = Failure::new()?;
    let pid = Exec { cgroup, init, process: description, spec, stdio, failure: writer }.start()?;
    // First of all, so that its end is not lost.
    let exit = reaper.claim(pid);
    if let Err(error) = Failed(reader).unless_executed("make a process").await {
        // It has ended, or hangs where a signal may still end it.
        let _ = cgroup::send(pid, libc::SIGKILL);
        return Err(error);
    }
    Ok(Process::new(pid, exit, prepared.complete(owner)?))
}

fn description(spec: &Spec) -> Result<&Description, Error> {
    spec.process().as_ref().ok_or_else(|| Error::invalid("spec.process: missing"))
}

/// Rows and columns of the terminal, if they are given.
fn size(description: &Description) -> Option<(u32, u32)> {
    let size = description.console_size().filter(|size| size.height() > 0 && size.width() > 0)?;
    let cells = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Some((cells(size.height()), cells(size.width())))
}

fn owner(description: &Description) -> (u32, u32) {
    (description.user().uid(), description.user().gid())
}

fn complete(
    reaper: &Reaper,
    report: &Report<'_>,
    prepared: Prepared,
    owner: (u32, u32),
    size: Option<(u32, u32)>,
) -> Result<Process, Error> {
    let pid = report.text.parse().map(Pid::from_raw);
    let pid = pid.map_err(|_| Error::Worker(format!("a worker reported {:?} as process id", report.text)))?;
    // First of all, so that its end is not lost.
    let exit = reaper.claim(pid);
    let stdio = prepared.complete(owner)?;
    if let Some((rows, columns)) = size {
        stdio.resize(rows, columns)?;
    }
    Ok(Process::new(pid, exit, stdio))
}
