//! The cgroups of the host that a sandbox is in.
//!
//! With `sandbox_cgroup_only` everything is in one, beside the pod's containers'. Without, a pod's processors are in
//! that, and the shim and all it starts in another, which nobody limits. Version 2 does not take a process apart like
//! that: there, and for a container that stands alone, all stays where containerd starts shims.
//!
//! The shim goes there before it starts anything, so that all it starts is there from its first instruction on, and
//! leaves at the end, as a cgroup with a process in it cannot be removed. What is made is written down before, so that
//! [`sweep`] finds it when the shim is no more.

mod member;
mod name;

use std::{
    fs,
    io::{Error as IoError, ErrorKind, Result as IoResult},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use oci_spec::runtime::Spec;
use slog::{Logger, warn};
use vmm::{QmpError, Vm};

use crate::{
    container::bundle,
    error::{Error, Result},
    metrics::Version,
};
use member::{Hierarchy, Member, Use};

/// Where the hierarchies of cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Those of version 1 that limit or count what a machine uses, and those of them that tell threads of a process apart.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "blkio", "pids"];
const OF_THREADS: [&str; 3] = ["cpu", "cpuacct", "cpuset"];
/// Where a process finds where it is.
const OWN: &str = "/proc/self/cgroup";
/// The file, in the run directory, with the cgroups that are to be removed, one a line.
const RECORD: &str = "cgroups";
/// How long the kernel may take to find a cgroup empty whose processes are dead: a busy host's has their memory to free
/// first.
const EMPTY: Duration = Duration::from_secs(2);
/// It tells nobody.
const PAUSE: Duration = Duration::from_millis(10);

/// The cgroups of a sandbox, which the shim is in; dropped, the shim is where it was, and they are gone.
pub(super) struct HostCgroup(Mutex<Vec<Member>>);

impl HostCgroup {
    /// Puts this process, and those it has started already, into the cgroup of sandbox `id`, whose first container is
    /// `spec`, where it is to have one.
    ///
    /// # Errors
    /// The cgroup that could not be made or joined, where the operator asks for it; the shim is where it was then.
    pub(super) fn enter(
        only: bool,
        spec: &Spec,
        id: &str,
        run_dir: &Path,
        started: &[u32],
        log: &Logger,
    ) -> Result<Option<HostCgroup>> {
        match HostCgroup::of(only, spec, id, run_dir, started) {
            Err(error) if !only => {
                warn!(log, "the sandbox is in no cgroups of its own"; "why" => error.to_string());
                Ok(None)
            }
            entered => entered,
        }
    }

    fn of(only: bool, spec: &Spec, id: &str, run_dir: &Path, started: &[u32]) -> Result<Option<HostCgroup>> {
        let version = Version::of_host();
        let splits = !only && version == Version::V1 && bundle::is_pod(spec);
        if !only && !splits {
            return Ok(None);
        }
        let hierarchies = Hierarchy::all(Path::new(ROOT), version, &CONTROLLERS, &own()?);
        if hierarchies.is_empty() {
            return Err(Error::Failed(format!("no cgroups are mounted at {ROOT}")));
        }
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
        let (sandbox, overhead) = (name::of(path, id), name::overhead(id));
        let joined = if splits { &overhead } else { &sandbox };
        let of_threads = hierarchies.iter().filter(|hierarchy| splits && hierarchy.has(&OF_THREADS));
        let of_threads = of_threads.map(|hierarchy| Member::new(hierarchy, &sandbox, Use::Processors));
        let members = hierarchies.iter().map(|hierarchy| Member::new(hierarchy, joined, Use::Joined));
        let members: Vec<_> = members.chain(of_threads).collect();
        let record = run_dir.join(RECORD);
        fs::write(&record, recorded(&members)).map_err(Error::io(record.display()))?;
        let cgroup = HostCgroup(Mutex::new(members));
        cgroup.members().iter().try_for_each(|member| {
            member.begin(started).map_err(Error::io(format_args!("cgroup {}", member.cgroup().display())))
        })?;
        Ok(Some(cgroup))
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the machine's processors where they are to be, those that have come since, too.
    ///
    /// # Errors
    /// What kept QEMU from telling which they are, or the kernel from moving them.
    pub(super) async fn place_processors(&self, vm: &dyn Vm) -> std::result::Result<(), String> {
        if !self.members().iter().any(Member::is_for_processors) {
            return Ok(());
        }
        let threads = vm.vcpu_threads().await.map_err(|error: QmpError| error.to_string())?;
        let members = self.members();
        let all = members.iter().filter(|member| member.is_for_processors());
        let mut each = all.flat_map(|member| threads.iter().map(move |thread| (member, thread.tid)));
        each.try_for_each(|(member, tid)| member.add_thread(tid)).map_err(|error| error.to_string())
    }

    /// Goes back, and removes the cgroups, in which nobody is any more. Only the first call does anything.
    ///
    /// # Errors
    /// The first that could not be removed; everything else was tried.
    pub(super) fn leave(&self) -> IoResult<()> {
        let members = std::mem::take(&mut *self.members());
        members.iter().for_each(Member::end);
        remove(members.iter().flat_map(Member::makes))
    }
}

impl Drop for HostCgroup {
    fn drop(&mut self) {
        // Nobody is left to tell; `delete` tries again.
        let _ = self.leave();
    }
}

/// Where this process is, by the kernel.
///
/// # Errors
/// There is no `/proc`, or none that says it.
pub(crate) fn own() -> Result<String> {
    fs::read_to_string(OWN).map_err(Error::io(OWN))
}

/// Puts processes where another one is, which `own` says of itself.
///
/// # Errors
/// The first cgroup that could not be joined; all others were tried.
pub(crate) fn follow(own: &str, processes: &[u32]) -> IoResult<()> {
    let controllers = own.lines().filter_map(|line| line.split(':').nth(1));
    let all = controllers.flat_map(|some| some.split(',')).map(|one| match one {
        // That of version 2, beside those of version 1.
        "" => "unified",
        one => one.strip_prefix("name=").unwrap_or(one),
    });
    let hierarchies = Hierarchy::all(Path::new(ROOT), Version::of_host(), &all.collect::<Vec<_>>(), own);
    hierarchies.iter().map(|hierarchy| hierarchy.take(processes)).fold(Ok(()), IoResult::and)
}

fn recorded(members: &[Member]) -> String {
    members.iter().flat_map(Member::makes).map(|cgroup| format!("{}\n", cgroup.display())).collect()
}

/// Removes what a shim that died has written down in its run directory.
///
/// # Errors
/// The first that could not be removed; everything else was tried.
pub(crate) fn sweep(run_dir: &Path) -> IoResult<()> {
    let record = match fs::read_to_string(run_dir.join(RECORD)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        record => record?,
    };
    remove(record.lines().map(Path::new).filter(|cgroup| cgroup.starts_with(ROOT)))
}

/// Removes cgroups, the innermost first. One with others in it is left to them.
fn remove<'a>(cgroups: impl Iterator<Item = &'a Path>) -> IoResult<()> {
    let deadline = Instant::now() + EMPTY;
    let mut outcome = Ok(());
    for cgroup in cgroups {
        let removed = loop {
            match fs::remove_dir(cgroup) {
                Err(error) if error.kind() == ErrorKind::NotFound => break Ok(()),
                Err(_) if has_others(cgroup) => break Ok(()),
                Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    sleep(PAUSE);
                }
                removed => break removed.map_err(|error| told(cgroup, &error)),
            }
        };
        outcome = outcome.and(removed);
    }
    outcome
}

fn has_others(cgroup: &Path) -> bool {
    let mut entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

fn told(cgroup: &Path, error: &IoError) -> IoError {
    IoError::new(error.kind(), format!("cgroup {}: {error}", cgroup.display()))
}
