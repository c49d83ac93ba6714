//! One container and its processes.
//!
//! ```text
//! Created --start--> Running <--resume/pause--> Paused
//! ```
//!
//! The phase is what the host has asked for; that a process has ended is known by the process.

mod execs;
mod making;

use std::sync::{Arc, Mutex, PoisonError};

use agent_protocol::{agent::ExecProcessRequest, convert};
use oci_spec::runtime::{LinuxResources, Process as Description, Spec};
use tokio::sync::RwLock;

use crate::{
    cgroup::{Cgroup, devices},
    devices::Addresses,
    error::Error,
    id::Id,
    process::Process,
    reaper::Reaper,
    runtime::{spec, users},
    stdio::arrivals::Connections,
};
use execs::Execs;
use making::Unstarted;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Created,
    Running,
    Paused,
}

/// A container that has been created.
pub(crate) struct Container {
    id: Id,
    spec: Spec,
    /// Of its devices.
    addresses: Addresses,
    cgroup: Cgroup,
    init: Arc<Process>,
    execs: Execs,
    /// Taken by `start`.
    unstarted: Mutex<Option<Unstarted>>,
    /// Held, across awaits, by whoever changes the phase, and shared by those who rely on it.
    phase: RwLock<Phase>,
}

impl Container {
    /// Makes it, up to the execution of its program. `spec` is as [`spec::adapt`] leaves it.
    pub(crate) async fn create(
        reaper: &Reaper,
        id: Id,
        mut spec: Spec,
        addresses: Addresses,
        connections: Connections,
    ) -> Result<Self, Error> {
        let cgroup = Cgroup::of(&id);
        let (init, unstarted) = making::init(reaper, &id, &cgroup, &mut spec, connections).await?;
        // Before the container's program can run.
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
        devices::restrict(cgroup.path(), rules)?;
        Ok(Self {
            id,
            spec,
            addresses,
            cgroup,
            init: Arc::new(init),
            execs: Execs::default(),
            unstarted: Mutex::new(Some(unstarted)),
            phase: RwLock::new(Phase::Created),
        })
    }

    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    pub(crate) fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// The process of that id; the container's first has the container's own id, or none.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, Error> {
        if exec.is_empty() || exec == self.id.as_str() {
            return Ok(Arc::clone(&self.init));
        }
        self.execs.find(&Id::parse("exec", exec)?)
    }

    /// Executes the container's program.
    ///
    /// # Errors
    ///
    /// [`Error::Worker`] with the process' own words if it could not.
    pub(crate) async fn start(&self, reaper: &Reaper) -> Result<(), Error> {
        let mut phase = self.phase.write().await;
        if *phase != Phase::Created {
            return Err(Error::state(format!("container {}: started already", self.id)));
        }
        if self.init.has_ended() {
            return Err(Error::state(format!("container {}: its process has ended", self.id)));
        }
        let unstarted = self.unstarted.lock().unwrap_or_else(PoisonError::into_inner).take();
        *phase = Phase::Running;
        match unstarted {
            Some(unstarted) => unstarted.start(reaper, &self.id, self.spec.hooks().is_some()).await,
            None => Ok(()),
        }
    }

    /// Makes one more process.
    pub(crate) async fn exec(
        &self,
        reaper: &Reaper,
        request: &ExecProcessRequest,
        connections: Connections,
    ) -> Result<(), Error> {
        let phase = self.phase.read().await;
        if *phase != Phase::Running || self.init.has_ended() {
            return Err(Error::state(format!("container {}: not running", self.id)));
        }
        let id = Id::parse("exec", &request.exec_id)?;
        if id == self.id {
            return Err(Error::Exists { kind: "process", id: id.to_string() });
        }
        let slot = self.execs.reserve(&id)?;
        let description = self.describe(request)?;
        let init = self.init.pid();
        let made =
            making::exec(reaper, &self.id, &self.cgroup, init, &self.spec, &description, connections).await?;
        slot.fill(made);
        Ok(())
    }

    fn describe(&self, request: &ExecProcessRequest) -> Result<Description, Error> {
        let wire = request.process.as_ref().ok_or_else(|| Error::invalid("process: missing"))?;
        spec::warn_of_unknown_capabilities(&self.id, wire);
        let mut process =
            convert::process_from_wire(wire).map_err(|error| Error::invalid(error.to_string()))?;
        let root = self.spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
        let user = users::resolve(&root, request.string_user.as_ref())?;
        spec::adapt_process(&mut process, self.spec.process().as_ref(), user)?;
        // Who asks for it has the environment of the container from the host.
        self.addresses.adapt(&mut process);
        Ok(process)
    }

    /// Stops all its processes where they are.
    pub(crate) async fn pause(&self) -> Result<(), Error> {
        self.turn(Phase::Running, Phase::Paused).await
    }

    pub(crate) async fn resume(&self) -> Result<(), Error> {
        self.turn(Phase::Paused, Phase::Running).await
    }

    async fn turn(&self, from: Phase, to: Phase) -> Result<(), Error> {
        let mut phase = self.phase.write().await;
        if *phase != from {
            return Err(Error::state(format!("container {}: {:?}, wants to be {from:?}", self.id, *phase)));
        }
        if let Err(error) = self.cgroup.freeze(to == Phase::Paused).await {
            // Half frozen is neither; as it was is the one state both sides can still agree on.
            let _ = self.cgroup.freeze(from == Phase::Paused).await;
            return Err(error);
        }
        *phase = to;
        Ok(())
    }

    /// Sends `signal` to all processes of the container.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<(), Error> {
        self.cgroup.signal(signal)
    }

    /// Applies new limits, and new rules about devices if there are any.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        self.cgroup.update(resources)?;
        match resources.devices() {
            Some(rules) if !rules.is_empty() => devices::restrict(self.cgroup.path(), rules),
            _ => Ok(()),
        }
    }

    /// Ends what is left of it.
    pub(crate) async fn end(&self) -> Result<(), Error> {
        if self.cgroup.path().exists() {
            self.cgroup.signal(libc::SIGKILL)?;
            self.cgroup.emptied().await?;
        }
        self.init.ended().await;
        Ok(())
    }
}
