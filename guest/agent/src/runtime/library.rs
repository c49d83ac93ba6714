//! Containers that libcontainer makes, in a worker: those with hooks, with users or clocks of their own, or with mounts
//! whose owners are mapped.

mod executor;

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use libcontainer::{
    container::{Container, ContainerStatus, builder::ContainerBuilder},
    error::LibcontainerError,
    notify_socket::NOTIFY_FILE,
    syscall::syscall::SyscallType,
};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::{Failure, bundle, home, make_working_dir, namespaces, sysctl};
use crate::{error::chain, hooks, id::Id, stdio::ChildStdio};
use executor::Executor;

/// Where libcontainer keeps its state.
const STATE: &str = "/run/agent/containers";

/// Whether a container is for it to make.
pub(crate) fn makes(spec: &Spec) -> bool {
    let mapped = |mount: &Mount| {
        let options = mount.options().iter().flatten();
        mount.uid_mappings().is_some()
            || mount.gid_mappings().is_some()
            || options.into_iter().any(|option| option.ends_with("idmap"))
    };
    spec.hooks().is_some()
        || namespaces::has(spec, LinuxNamespaceType::User)
        || namespaces::has(spec, LinuxNamespaceType::Time)
        || spec.mounts().iter().flatten().any(mapped)
}

/// Whether it has anything of a container, of whatever is left of one.
pub(crate) fn knows(id: &Id) -> bool {
    Path::new(STATE).join(id).exists()
}

/// A container to be made.
pub(crate) struct Create<'a> {
    pub(crate) id: &'a Id,
    /// Changed by the worker for itself.
    pub(crate) spec: &'a mut Spec,
    pub(crate) stdio: ChildStdio<PathBuf>,
    pub(crate) failure: Failure,
}

impl Failure {
    fn fds(&self) -> [RawFd; 2] {
        [self.reader.as_raw_fd(), self.writer.as_raw_fd()]
    }

    /// What the process said, or else the library's own words.
    fn explain(self, error: &LibcontainerError) -> String {
        drop(self.writer);
        let mut said = String::new();
        // Nothing said is an empty pipe or one that would block.
        let _ = File::from(self.reader).take(4096).read_to_string(&mut said);
        if said.is_empty() { chain(error) } else { said }
    }
}

impl Create<'_> {
    /// The descriptors its worker needs.
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        self.stdio.fds().into_iter().chain(self.failure.fds()).collect()
    }

    /// Makes it up to the point where its first process waits for [`let_go`] or [`start`]. Returns that process' id.
    pub(crate) fn run(self) -> Result<String, String> {
        sysctl::apply_network(self.spec)?;
        let bundle = bundle(self.id);
        make_working_dir(self.spec);
        let hooked = self.spec.hooks().is_some();
        // Hooks may be given the environment of the process, and a stand-in would be a lie there.
        let homeless = !hooked && self.spec.process_mut().as_mut().is_some_and(home::stand_in);
        self.spec
            .save(bundle.join("config.json"))
            .map_err(|error| format!("write the configuration of {}: {}", self.id, chain(&error)))?;
        let executor = Executor::new(self.failure.writer.as_raw_fd(), homeless);
        let built = self
            .stdio
            .attach(ContainerBuilder::new(self.id.to_string(), SyscallType::default()))
            .with_executor(executor)
            .with_root_path(STATE)
            .and_then(|builder| builder.as_init(&bundle).with_systemd(false).with_detach(true).build());
        match built {
            Ok(mut container) => {
                if !hooked {
                    note_started(&mut container)?;
                }
                pid(container.pid().map(|pid| pid.as_raw()))
            }
            Err(error) => Err(hooks::failure(&bundle).unwrap_or_else(|| self.failure.explain(&error))),
        }
    }
}

/// As far as the library is concerned the container has started: the state is the agent's to keep, and [`let_go`]
/// does without the library.
fn note_started(container: &mut Container) -> Result<(), String> {
    container.set_status(ContainerStatus::Running).save().map_err(|error| chain(&error))
}

/// Has the first process of a created container without hooks execute its program. Blocks for nothing, so no worker is
/// needed.
pub(crate) fn let_go(id: &Id) -> io::Result<()> {
    notify(&Path::new(STATE).join(id))
}

fn notify(dir: &Path) -> io::Result<()> {
    // The path of a socket may be no longer than 107 bytes, that of the directory may.
    let dir = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{NOTIFY_FILE}", dir.as_raw_fd())).map(drop)
}

/// As [`let_go`] for a container with hooks, which run.
pub(crate) fn start(id: &Id) -> Result<String, String> {
    load(id)?.start().map_err(|error| chain(&error))?;
    Ok(String::new())
}

/// Removes what libcontainer keeps of a container. Its processes must have ended; hooks run.
pub(crate) fn delete(id: &Id) -> Result<String, String> {
    if Path::new(STATE).join(id).exists() {
        load(id)?.delete(true).map_err(|error| chain(&error))?;
    }
    Ok(String::new())
}

fn load(id: &Id) -> Result<Container, String> {
    Container::load(Path::new(STATE).join(id)).map_err(|error| chain(&error))
}

fn pid(pid: Option<i32>) -> Result<String, String> {
    pid.map(|pid| pid.to_string()).ok_or_else(|| "libcontainer told no process id".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use libcontainer::notify_socket::NotifyListener;

    use super::*;

    #[test]
    fn a_container_with_a_long_name_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("x".repeat(128));
        fs::create_dir(&dir).unwrap();
        assert!(notify(&dir).is_err());
        let start = NotifyListener::new(&dir.join(NOTIFY_FILE)).unwrap();
        notify(&dir).unwrap();
        start.wait_for_container_start().unwrap();
    }
}
