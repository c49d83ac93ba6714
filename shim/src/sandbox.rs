//! A sandbox: one virtual machine, the agent in it, and what the host keeps for them.
//!
//! ```text
//! boot -> Up --stop, or any of its processes dies--> Ending -> Ended
//! ```
//!
//! Fields are dropped in the order they are torn down: the machine, its network, the shared tree, the door, the cgroup,
//! the run directory. Whoever drops the last reference ends the machine, so a boot that is given up half way leaves nothing.

pub(crate) mod boot;
mod health;
pub(crate) mod host_cgroup;
mod keeping;
mod lost;
mod only;
pub(crate) mod options;
mod provisions;
pub(crate) mod resources;
pub(crate) mod run_dir;
pub(crate) mod share;
mod vm_spec;

use std::{
    ffi::OsStr,
    future::Future,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant, SystemTime},
};

use agent_client::AgentClient;
use slog::{Logger, error, info, warn};
use tokio::{sync::watch, time::timeout};
use vmm::{
    Process, Vm, Vsock,
    plug::{DeviceId, PlugError, Pluggable, Plugged},
};

use crate::{
    container::{disks::SharedDisks, host_devices::HostDevices, spec::Confinement},
    error::{Error, Result},
    management::Door,
    network::Network,
    process::{Exit, LOST},
    stdio::wires::{Connected, Offer},
    thread,
};
use health::Health;
use host_cgroup::HostCgroup;
use keeping::Keeper;
pub(crate) use only::{Making, OnlySandbox, Prepared};
use provisions::Provided;
pub(crate) use provisions::{Provisions, RESOLVER};
use resources::Resources;
use run_dir::RunDir;
use share::HostFiles;

/// How long the guest may take to write back what its containers wrote, before its machine is ended: up to a fifth of its
/// memory, to what may be a slow disk.
const FAREWELL: Duration = Duration::from_secs(20);

/// Where a sandbox stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Up,
    /// On its way down, and why.
    Ending {
        why: String,
        status: u32,
    },
    Ended(Exit),
}

/// A booted sandbox.
pub(crate) struct Sandbox {
    vm: Box<dyn Vm>,
    network: Network,
    host_files: HostFiles,
    /// Where operators' tools ask.
    door: Option<Door>,
    /// What the shim and all that it starts for the sandbox are in, if that is of their own.
    cgroup: Option<HostCgroup>,
    run_dir: RunDir,
    agent: AgentClient,
    health: Health,
    /// Whether the guest takes streams on connections of their own.
    offer: Offer,
    confinement: Confinement,
    keeper: Keeper,
    plugs_root_disks: bool,
    shared_disks: SharedDisks,
    host_devices: HostDevices,
    provided: Provided,
    resources: Resources,
    /// Closed when a first process has started: who keeps machines ready waits for that, with the next.
    user: Mutex<Option<OwnedFd>>,
    since: SystemTime,
    phase: watch::Sender<Phase>,
    clock: Clock,
    log: Logger,
}

/// Milliseconds since containerd asked for the sandbox, for the log.
#[derive(Clone)]
pub(crate) struct Clock {
    since: Instant,
    log: Logger,
}

impl Clock {
    pub(crate) fn start(log: Logger) -> Clock {
        Clock { since: Instant::now(), log }
    }

    /// Notes that a start has come as far as `phase`.
    pub(crate) fn mark(&self, phase: &'static str) {
        self.mark_at(phase, Instant::now());
    }

    fn mark_at(&self, phase: &'static str, at: Instant) {
        let elapsed = at.saturating_duration_since(self.since).as_secs_f64() * 1000.0;
        info!(self.log, "phase"; "phase" => phase, "at_ms" => format!("{elapsed:.1}"));
    }
}

impl Sandbox {
    /// The process that stands for the sandbox on the host: QEMU.
    pub(crate) fn pid(&self) -> u32 {
        self.vm.pid()
    }

    pub(crate) fn agent(&self) -> &AgentClient {
        &self.agent
    }

    /// How its guest comes by files of the host's.
    pub(crate) fn host_files(&self) -> &HostFiles {
        &self.host_files
    }

    /// Connects the streams of a process that is about to be made in the guest.
    ///
    /// # Errors
    /// `Unavailable` when there is no guest any more.
    pub(crate) async fn wires(&self, terminal: bool) -> Result<Connected> {
        self.is_up()?;
        Ok(self.offer.open(self.vm.vsock().as_ref(), terminal, &self.log).await)
    }

    /// What confines containers inside the guest.
    pub(crate) fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// Whether root file systems that are on disks are the guest's to mount.
    pub(crate) fn plugs_root_disks(&self) -> bool {
        self.plugs_root_disks
    }

    /// Disks that several containers use.
    pub(crate) fn shared_disks(&self) -> &SharedDisks {
        &self.shared_disks
    }

    /// Devices of the host that the machine has.
    pub(crate) fn host_devices(&self) -> &HostDevices {
        &self.host_devices
    }

    /// What its containers have of it.
    pub(crate) fn provided(&self) -> &Provided {
        &self.provided
    }

    /// Since when it is up.
    pub(crate) fn since(&self) -> SystemTime {
        self.since
    }

    /// How it ended, if it did.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match *self.phase.borrow() {
            Phase::Ended(exit) => Some(exit),
            Phase::Up | Phase::Ending { .. } => None,
        }
    }

    /// Adds a device to the machine.
    ///
    /// # Errors
    /// What is wrong with it, or with the machine's room for it.
    pub(crate) async fn plug(&self, device: Pluggable) -> std::result::Result<Plugged, PlugError> {
        self.vm.plug(device).await
    }

    /// Takes a device away, unless the machine goes anyway. Returns whether it is gone.
    pub(crate) async fn unplug(&self, id: &DeviceId) -> bool {
        if self.is_up().is_err() {
            return false;
        }
        let unplugged = self.vm.unplug(id).await;
        if let Err(error) = &unplugged
            && self.is_up().is_ok()
        {
            warn!(self.log, "a device stays in the machine"; "device" => id.to_string(), "why" => error.to_string());
        }
        unplugged.is_ok()
    }

    /// Has the guest see how large a disk is by now; returns that, in bytes.
    ///
    /// # Errors
    /// What keeps the machine from it.
    pub(crate) async fn resize_disk(&self, id: &DeviceId) -> Result<u64> {
        self.is_up()?;
        let size = self.vm.resize_disk(id).await;
        size.map_err(|error| Error::Failed(format!("size of {id}: {error}")))
    }

    /// Its name, as containerd has it.
    pub(crate) fn id(&self) -> &OsStr {
        self.run_dir.path().file_name().unwrap_or_default()
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }

    pub(crate) fn door(&self) -> Option<&Door> {
        self.door.as_ref()
    }

    /// The machine's processes on the host.
    pub(crate) fn processes(&self) -> Vec<Process> {
        self.vm.processes()
    }

    pub(crate) fn vsock(&self) -> Arc<dyn Vsock> {
        self.vm.vsock()
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    pub(crate) fn mark(&self, phase: &'static str) {
        self.clock.mark(phase);
    }

    /// Notes that a container has started.
    pub(crate) fn started(&self) {
        self.mark("started");
        drop(self.user.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Puts the machine's processors into the cgroup, and on the CPUs, that they are to be in.
    async fn place_processors(&self) {
        if let Some(cgroup) = &self.cgroup
            && let Err(why) = cgroup.place_processors(self.vm.as_ref()).await
        {
            warn!(self.log, "the machine's processors are not in the pod's cgroup"; "why" => why);
        }
        self.resources.pin(self.vm.as_ref()).await;
    }

    /// # Errors
    /// `Unavailable` when the machine is on its way down or gone, and why.
    pub(crate) fn is_up(&self) -> Result<()> {
        match &*self.phase.borrow() {
            Phase::Up => Ok(()),
            Phase::Ending { why, .. } => {
                Err(Error::Unavailable(format!("the virtual machine is being stopped: {why}")))
            }
            Phase::Ended(_) => Err(Error::Unavailable("the virtual machine is gone".into())),
        }
    }

    /// Waits for the answer to an agent call, but not longer than the machine lives.
    ///
    /// # Errors
    /// The agent's answer in containerd's terms, or why the machine is gone.
    pub(crate) async fn ask<T>(
        &self,
        call: impl Future<Output = std::result::Result<T, agent_client::Error>> + Send,
    ) -> Result<T> {
        self.is_up()?;
        let answer = tokio::select! {
            answer = call => answer,
            () = self.gone() => return Err(self.why_gone()),
        };
        match answer {
            // Why it has is told soon.
            Err(closed @ agent_client::Error::Closed { .. }) => {
                let gone = timeout(lost::TOLD, self.gone()).await;
                Err(gone.map_or_else(|_| boot::in_containerds_terms(closed), |()| self.why_gone()))
            }
            answer => answer.map_err(boot::in_containerds_terms),
        }
    }

    /// Resolves when the machine is on its way down or gone.
    pub(crate) async fn gone(&self) {
        let mut phases = self.phase.subscribe();
        // The sender lives in self: this ends by the phase alone.
        let _ = phases.wait_for(|phase| *phase != Phase::Up).await;
    }

    /// The same, and does not keep it.
    pub(crate) fn going(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phases = self.phase.subscribe();
        async move {
            let _ = phases.wait_for(|phase| *phase != Phase::Up).await;
        }
    }

    /// Resolves when nothing is left of it; does not keep it.
    pub(crate) fn nothing_left(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phases = self.phase.subscribe();
        async move {
            let _ = phases.wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
        }
    }

    fn why_gone(&self) -> Error {
        let why = match &*self.phase.borrow() {
            Phase::Ending { why, .. } => why.clone(),
            Phase::Up | Phase::Ended(_) => "it was stopped".into(),
        };
        Error::Unavailable(format!("the virtual machine is gone: {why}"))
    }

    /// Ends the machine and clears up after it, because of `why`. The first call does it, whoever's it is, and goes
    /// on when its caller does not wait; every call returns when it is done.
    pub(crate) async fn stop(self: &Arc<Self>, why: &str) {
        self.end(why, 0).await;
    }

    async fn end(self: &Arc<Self>, why: &str, status: u32) {
        self.begin_end(why, status);
        self.ended().await;
    }

    /// The same, and nobody waits for it.
    pub(crate) fn begin_end(self: &Arc<Self>, why: &str, status: u32) {
        let first = self.phase.send_if_modified(|phase| {
            let up = *phase == Phase::Up;
            if up {
                *phase = Phase::Ending { why: why.to_string(), status };
            }
            up
        });
        if first {
            info!(self.log, "stopping"; "why" => why);
            tokio::spawn(self.clone().tear_down(status));
        }
    }

    /// Waits until nothing of it is left; how it ended.
    pub(crate) async fn ended(&self) -> Exit {
        let mut phases = self.phase.subscribe();
        loop {
            if let Phase::Ended(exit) = *phases.borrow_and_update() {
                return exit;
            }
            // The sender lives in self, which this borrow keeps alive.
            let _ = phases.changed().await;
        }
    }

    /// Every step is tried, whatever becomes of the one before.
    async fn tear_down(self: Arc<Self>, status: u32) {
        // What is lost has nothing to say.
        if status != LOST && self.vm.exit().borrow().is_none() {
            match timeout(FAREWELL, self.agent.destroy_sandbox()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    info!(self.log, "the guest did not say farewell"; "why" => error.to_string())
                }
                Err(_) => {
                    warn!(self.log, "the guest did not say farewell in time: what its containers wrote last may be lost"; "seconds" => FAREWELL.as_secs())
                }
            }
        }
        // Nothing in the guest is worth waiting for any more.
        if let Err(error) = self.vm.stop(Duration::ZERO).await {
            error!(self.log, "the virtual machine is not gone"; "why" => error.to_string());
        }
        if let Err(error) = self.network.disconnect().await {
            error!(self.log, "the pod's network is not given back"; "why" => error.to_string());
        }
        self.host_files.unmount();
        self.clone().leave_cgroup().await;
        if let Some(door) = &self.door {
            door.close();
        }
        if let Err(error) = run_dir::remove(self.run_dir.path()) {
            warn!(self.log, "run directory not removed"; "why" => error.to_string());
        }
        self.phase.send_replace(Phase::Ended(Exit::now(status)));
        info!(self.log, "stopped");
    }

    /// On a thread, as the kernel may take a while to find the cgroup empty, and others are served meanwhile.
    async fn leave_cgroup(self: Arc<Self>) {
        if self.cgroup.is_none() {
            return;
        }
        let log = self.log.clone();
        let left = thread::run("cgroup", move || {
            let left = self.cgroup.as_ref().map_or(Ok(()), HostCgroup::leave);
            left.map_err(|error| Error::Failed(error.to_string()))
        });
        if let Err(error) = left.await {
            warn!(log, "the sandbox's cgroup is not removed"; "why" => error.to_string());
        }
    }

    /// Begins to end the machine if its agent does not answer. Returns whether that was so.
    pub(crate) async fn begin_end_if_lost(self: &Arc<Self>) -> bool {
        let lost = !self.health.answers(&self.agent).await;
        if lost {
            self.begin_end(health::LOST, LOST);
        }
        lost
    }

    /// Stops the sandbox as soon as any process of it, or the agent's connection, is gone, or the agent does not answer.
    fn watch(self: &Arc<Self>) {
        let why = lost::why(self.vm.exit(), self.agent.closed(), self.health.lost(self.agent.clone()));
        let sandbox: Weak<Sandbox> = Arc::downgrade(self);
        tokio::spawn(async move {
            let why = why.await;
            let Some(sandbox) = sandbox.upgrade() else { return };
            let console = sandbox.vm.console_tail();
            let why = lost::explained(why, &console);
            if *sandbox.phase.borrow() == Phase::Up {
                error!(sandbox.log, "the virtual machine is lost"; "why" => &why, "console" => console);
            }
            sandbox.end(&why, LOST).await;
        });
    }
}
