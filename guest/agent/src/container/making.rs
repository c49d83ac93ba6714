//! From a description to a process with streams.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use nix::unistd::{Pid, read, write};
use oci_spec::runtime::{Process as Description, Spec};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    cgroup::{self, Cgroup},
    error::Error,
    id::Id,
    process::Process,
    readiness,
    reaper::Reaper,
    runtime::{
        EXECUTES, Failure,
        first::First,
        join::Exec,
        library::{self, Create},
    },
    stdio::{self, Prepared, arrivals::Connections},
    stuck,
    worker::{self, Report},
};

/// How long the making of a container or process may take, on the slowest of emulated machines.
const MAKE: Duration = Duration::from_secs(60);

/// Longest message of a process that cannot execute its program, in bytes.
const MAX_MESSAGE: usize = 4096;

/// The reading end of [`Failure`], and whose it is.
struct Failed(OwnedFd, Pid);

impl Failed {
    /// Returns once the process has executed its program, or ended without.
    ///
    /// # Errors
    ///
    /// [`Error::Worker`] with the reason it gave.
    async fn unless_executed(self, what: &str) -> Result<(), Error> {
        let pipe = readiness::watch(self.0, Interest::READABLE).map_err(Error::system(what))?;
        let timeout = |_| late(what, self.1);
        let said = tokio::time::timeout(MAKE, to_the_end(&pipe)).await.map_err(timeout)?;
        let said = said.map_err(Error::system(what))?;
        match said.strip_prefix(&[EXECUTES]).unwrap_or(&said) {
            [] if said.is_empty() => {
                Err(Error::Worker(format!("{what}: the process ended before its program ran")))
            }
            [] => Ok(()),
            reason => Err(Error::Worker(String::from_utf8_lossy(reason).into_owned())),
        }
    }
}

fn late(what: &str, pid: Pid) -> Error {
    Error::Timeout { what: format!("{what} ({})", stuck::whereabouts(pid)), after: MAKE }
}

/// All that is said until the other end closes, or as much as anybody reads.
async fn to_the_end(pipe: &AsyncFd<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    let mut part = vec![0; MAX_MESSAGE];
    loop {
        let len = pipe.async_io(Interest::READABLE, |pipe| Ok(read(pipe, &mut part)?)).await?;
        said.extend_from_slice(&part[..len]);
        if len == 0 || said.len() >= MAX_MESSAGE {
            return Ok(said);
        }
    }
}

/// What a container that is made, and not yet started, waits for.
pub(super) struct Unstarted {
    failed: Failed,
    /// None where the library waits by its own way.
    gate: Option<OwnedFd>,
}

impl Unstarted {
    /// Lets the container's program run, unless hooks of the library's have to see to that.
    ///
    /// # Errors
    ///
    /// [`Error::Worker`] with the process' own words if it could not.
    pub(super) async fn start(self, reaper: &Reaper, id: &Id, hooked: bool) -> Result<(), Error> {
        let what = format!("start container {id}");
        match &self.gate {
            // A process that is gone has said why.
            Some(gate) => drop(write(gate, &[1])),
            None if hooked => drop(worker::run(reaper, &what, &[], MAKE, || library::start(id)).await?),
            None => library::let_go(id).map_err(Error::system(what.clone()))?,
        }
        self.failed.unless_executed(&what).await
    }
}

/// Makes the first process of a container, and the container with it.
pub(super) async fn init(
    reaper: &Reaper,
    id: &Id,
    cgroup: &Cgroup,
    spec: &mut Spec,
    connections: Connections,
) -> Result<(Process, Unstarted), Error> {
    let made = if library::makes(spec) {
        by_library(reaper, id, spec, connections).await
    } else {
        first(reaper, id, cgroup, spec, connections).await
    };
    if made.is_err() {
        // Of what was made in part something may be left.
        let _ = cgroup.signal(libc::SIGKILL);
    }
    made
}

async fn first(
    reaper: &Reaper,
    id: &Id,
    cgroup: &Cgroup,
    spec: &mut Spec,
    connections: Connections,
) -> Result<(Process, Unstarted), Error> {
    let what = format!("create container {id}");
    let process = description(spec)?;
    let owner = owner(process);
    let (stdio, prepared) = match process.terminal() {
        Some(true) => stdio::prepare_terminal(connections)?,
        _ => stdio::prepare(owner, connections)?,
    };
    cgroup.make(spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()))?;
    let Failure { reader, writer } = Failure::new()?;
    let (ours, theirs) = UnixStream::pair().map_err(Error::system(what.clone()))?;
    let pid = First { cgroup, spec, stdio, failure: writer, gate: theirs }.start()?;
    let exit = reaper.adopt(pid);
    let failed = Failed(reader, pid);
    match opened(ours, &what, pid).await? {
        Some(gate) => {
            Ok((Process::new(pid, exit, prepared.complete(owner)?), Unstarted { failed, gate: Some(gate) }))
        }
        None => Err(failed.unless_executed(&what).await.err().unwrap_or_else(|| {
            Error::state(format!("{what}: its first process did not wait for its start"))
        })),
    }
}

/// The gate, when the process is at its other end; none if the process has ended.
async fn opened(gate: UnixStream, what: &str, pid: Pid) -> Result<Option<OwnedFd>, Error> {
    gate.set_nonblocking(true).map_err(Error::system(what))?;
    let gate = readiness::watch(gate.into(), Interest::READABLE).map_err(Error::system(what))?;
    let there = gate.async_io(Interest::READABLE, |gate| Ok(read(gate, &mut [0])?));
    let timeout = |_| late(what, pid);
    let there = tokio::time::timeout(MAKE, there).await.map_err(timeout)?;
    Ok(matches!(there, Ok(1)).then(|| gate.into_inner()))
}

async fn by_library(
    reaper: &Reaper,
    id: &Id,
    spec: &mut Spec,
    connections: Connections,
) -> Result<(Process, Unstarted), Error> {
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
    let made = worker::run(reaper, &what, &create.fds(), MAKE, move || create.run()).await?;
    let process = complete(reaper, &made, prepared, owner, size)?;
    let failed = Failed(failed, process.pid());
    Ok((process, Unstarted { failed, gate: None }))
}

/// Makes a process in a running container, and has it execute its program.
pub(super) async fn exec(
    reaper: &Reaper,
    id: &Id,
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
    let pid = Exec { id, cgroup, init, process: description, spec, stdio, failure: writer }.start()?;
    let exit = reaper.adopt(pid);
    let what = format!("make a process in container {id}");
    let executed = Failed(reader, pid).unless_executed(&what).await;
    match executed.and_then(|()| prepared.complete(owner)) {
        Ok(stdio) => Ok(Process::new(pid, exit, stdio)),
        Err(error) => {
            // Whether it hangs, or runs without streams; unless its id is another's by now.
            if exit.borrow().is_none() {
                let _ = cgroup::send(pid, libc::SIGKILL);
            }
            Err(error)
        }
    }
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
