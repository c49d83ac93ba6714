//! A process that joins a running container.
//!
//! One fork of the agent becomes it: born in the container's cgroup and process namespace, it enters the other
//! namespaces, takes its streams, becomes its user and executes its program. libcontainer would take two processes
//! more, files and a socket, most of what an exec cost on an emulated processor (docs/decisions/0011).

use std::{
    convert::Infallible,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use libcontainer::syscall::syscall::create_syscall;
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::prctl,
    unistd::{Pid, setsid},
};
use oci_spec::runtime::{Process, Spec};

use super::{
    child::{Child, become_user, said},
    fork::{Within, fork_into, live},
    namespaces,
};
use crate::{
    cgroup::{self, Cgroup},
    error::Error,
    id::Id,
    pidfd,
    stdio::ChildStdio,
    worker,
};

/// What becomes a process of a running container.
pub(crate) struct Exec<'a> {
    pub(crate) id: &'a Id,
    pub(crate) cgroup: &'a Cgroup,
    /// The first process of the container, whose end has not been seen yet, so that the id is still its own.
    pub(crate) init: Pid,
    /// As [`super::spec::adapt_process`] leaves it.
    pub(crate) process: &'a Process,
    /// The configuration of the container.
    pub(crate) spec: &'a Spec,
    /// A terminal is made in the container and sent to this socket.
    pub(crate) stdio: ChildStdio<OwnedFd>,
    /// The writing end of [`super::Failure`]. It closes as the program is executed.
    pub(crate) failure: OwnedFd,
}

impl Exec<'_> {
    /// Starts the process, a child of the agent, and returns its id. What keeps it from executing its program it says
    /// on `failure`.
    pub(crate) fn start(self) -> Result<Pid, Error> {
        let refused = |what: &str| Error::system(format!("make a process in container {}: {what}", self.id));
        let init = pidfd::open(self.init).map_err(refused("find the container's first process"))?;
        let namespaces = namespaces::all(self.spec);
        // The namespace of processes is entered by being born there.
        let within = namespaces.contains(CloneFlags::CLONE_NEWPID).then(|| Within::enter(&init)).transpose();
        let within = within.map_err(refused("enter the container's process namespace"))?;
        let forked = self.fork().map_err(|error| self.unless_ended(&init, refused("fork")(error)))?;
        if let Some(pid) = forked {
            drop(within);
            return Ok(pid);
        }
        live(&self.failure, || self.join(&init, namespaces - CloneFlags::CLONE_NEWPID))
    }

    /// None in the child.
    fn fork(&self) -> io::Result<Option<Pid>> {
        match fork_into(self.cgroup.path(), CloneFlags::empty()) {
            // A container that has divided its cgroup among cgroups of its own holds no process there itself.
            Err(Errno::EBUSY | Errno::EOPNOTSUPP) => {
                Ok(fork_into(&cgroup::of_process(self.init)?, CloneFlags::empty())?)
            }
            forked => Ok(forked?),
        }
    }

    /// Nothing is born in a process namespace whose first process is gone: the kernel says that there is no memory.
    fn unless_ended(&self, init: &OwnedFd, error: Error) -> Error {
        if pidfd::has_ended(init) {
            Error::state(format!("container {}: its process has ended", self.id))
        } else {
            error
        }
    }

    /// Returns only with what went wrong.
    fn join(&self, init: &OwnedFd, namespaces: CloneFlags) -> Result<Infallible, String> {
        let system = create_syscall();
        let child = Child { process: self.process, container: self.spec, stdio: &self.stdio };
        let mut kept = self.stdio.fds();
        kept.extend([init.as_raw_fd(), self.failure.as_raw_fd()]);
        worker::leave_the_agent(kept).map_err(said("leave the agent"))?;
        child.limits(system.as_ref())?;
        // In the container others could look into a process that is still the agent's program.
        prctl::set_dumpable(false).map_err(said("hide from the container"))?;
        setns(init, namespaces).map_err(said("enter the container"))?;
        if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
            become_user(0, 0).map_err(said("become root there"))?;
        }
        setsid().map_err(said("begin a session"))?;
        child.streams()?;
        child.ready(system.as_ref())?.execute(&self.failure, system.as_ref())
    }
}
