//! A container in a sandbox, and the calls that change it.
//!
//! ```text
//! Created --start--> Running <--pause/resume--> Paused
//!    \----- kill -----> Stopped <--- exit ---/
//! ```

pub(crate) mod bundle;
mod capabilities;
pub(crate) mod direct;
pub(crate) mod disks;
mod exec;
pub(crate) mod host_devices;
mod kill;
pub(crate) mod limits;
mod rootfs;
mod shown;
pub(crate) mod spec;
mod supervise;
pub(crate) mod volumes;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agent_protocol::{
    agent::{CreateContainerRequest, Device, StatsContainerResponse},
    convert,
};
use containerd_shim_protos::{
    events::task as event,
    protobuf::{MessageField, well_known_types::any::Any},
    types::mount::Mount,
};
use futures::future::OptionFuture;
use oci_spec::runtime::Spec;
use slog::{Logger, info, warn};
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard},
    time::sleep,
};

use disks::Plugged;
use rootfs::RootFs;
use shown::Shown;
use spec::GuestSpec;

use crate::{
    error::{Error, Result},
    events::Events,
    hooks::ContainerHooks,
    metrics,
    process::{Exit, LOST, Process, State},
    sandbox::{
        Sandbox,
        resources::{Limits, Part},
    },
    stdio::{Io, Paths, pump::Source, sink, stdin, wires::Connected},
    table::Table,
};

/// SIGKILL's number: the one signal that must always work.
const SIGKILL: u32 = 9;
/// How long the guest may take over a kill before its machine is stopped instead.
const KILL: Duration = Duration::from_secs(5);
/// How often a guest is asked to remove what it makes longer than anybody waits.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the agent may take over a container's removal.
const REMOVE: Duration = Duration::from_secs(10);

/// What containerd asked for in Create.
pub(crate) struct NewContainer {
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) stdio: Paths,
    /// Whether the sandbox was made for this container and ends with it.
    pub(crate) owns_sandbox: bool,
    pub(crate) hooks: Option<Arc<ContainerHooks>>,
    pub(crate) log: Logger,
}

/// A container as the shim knows it.
pub(crate) struct Container {
    id: String,
    namespace: String,
    bundle: PathBuf,
    sandbox: Arc<Sandbox>,
    /// Whether the sandbox was made for this container and ends with it.
    owns_sandbox: bool,
    init: Arc<Process>,
    execs: Table<Process>,
    paused: AtomicBool,
    /// Held across the calls that move the container from one state to the next, so that they follow one another.
    /// What only looks (State, Wait) or must always work (Kill) never takes it.
    phase: AsyncMutex<()>,
    /// Held by the Update whose turn it is, so that the guest is told of them in their order.
    updating: AsyncMutex<()>,
    /// The first process's streams, until its start.
    io: Mutex<Option<Io>>,
    /// The root filesystem and volumes, as far as they are the host's.
    shown: Mutex<Vec<Shown>>,
    /// The disks that the machine has for it.
    plugged: Mutex<Vec<Arc<Plugged>>>,
    /// Of the machine, unless it is what stands for a pod, until it is deleted.
    part: Mutex<Option<Part>>,
    hooks: Option<Arc<ContainerHooks>>,
    events: Events,
    log: Logger,
}

impl Container {
    /// Shares what the container needs with the guest and has the agent create it there.
    ///
    /// # Errors
    /// What could not be shared, or the guest's own words.
    pub(crate) async fn create(
        new: NewContainer,
        mut spec: Spec,
        sandbox: Arc<Sandbox>,
        events: Events,
    ) -> Result<Arc<Container>> {
        stdin::check(&new.stdio.stdin)?;
        let output = sink::open(&new.stdio, &new.id, &new.namespace).await?;
        let terminal = new.stdio.terminal;
        let stands_for_a_pod = new.owns_sandbox && bundle::is_pod(&spec);
        let part = (!stands_for_a_pod).then(|| sandbox.admit(&new.id, Limits::of(&spec)));
        // The guest answers while the host mounts.
        let (rootfs, Connected { wires, ports, turn }, part) = tokio::try_join!(
            rootfs::prepare(&sandbox, &new.id, &new.rootfs, &spec, &new.bundle),
            sandbox.wires(terminal),
            async { OptionFuture::from(part).await.transpose() },
        )?;
        let of_the_pod = sandbox.provided().complete(&mut spec);
        let keeping = sandbox.keeping(&spec).await?;
        let host_devices = host_devices::asked(&spec)?;
        let root = rootfs.guest_path();
        if stands_for_a_pod {
            sandbox.has_root(root);
        }
        let mut guest = spec::for_guest(spec, &new.id, root, sandbox.confinement(), &keeping)?;
        let mut shown = shown::show(&sandbox, &mut guest).await?;
        let mut plugged = Vec::new();
        match rootfs {
            RootFs::Shared(mounted) => shown.push(mounted.into()),
            RootFs::Disk { disk, storage } => {
                plugged.push(disk);
                guest.storages.push(storage);
            }
        }
        let devices = plug(&sandbox, &mut guest, host_devices, &mut plugged).await?;
        guest.spec.mounts_mut().get_or_insert_default().extend(of_the_pod);
        warn_of_what_is_lost(&sandbox, &guest.spec, &new.log).await;
        let request = CreateContainerRequest {
            container_id: new.id.clone(),
            exec_id: new.id.clone(),
            storages: guest.storages,
            devices,
            oci: MessageField::some(convert::spec_to_wire(&guest.spec)),
            sandbox_pidns: guest.sandbox_pidns,
            stdin_port: ports.stdin,
            stdout_port: ports.stdout,
            stderr_port: ports.stderr,
            ..Default::default()
        };
        if let Err(error) = sandbox.ask(sandbox.agent().create_container(request)).await {
            // A machine of its own goes anyway.
            if matches!(error, Error::DeadlineExceeded(_)) && !new.owns_sandbox {
                tokio::spawn(given_up(sandbox, new.id, (shown, plugged, part)));
            }
            return Err(error);
        }
        drop(turn);
        let init = Arc::new(Process::new("", &new.id, new.stdio));
        let container = Arc::new(Container {
            id: new.id,
            namespace: new.namespace,
            bundle: new.bundle,
            sandbox,
            owns_sandbox: new.owns_sandbox,
            init,
            execs: Table::new("exec"),
            paused: AtomicBool::new(false),
            phase: AsyncMutex::new(()),
            updating: AsyncMutex::new(()),
            io: Mutex::new(Some(Io { input: None, output, wires, terminal })),
            shown: Mutex::new(shown),
            plugged: Mutex::new(plugged),
            part: Mutex::new(part),
            hooks: new.hooks,
            events,
            log: new.log,
        });
        let (beginning, sandbox) = (container.init.begun(), container.sandbox.clone());
        tokio::spawn(supervise::unstarted(Arc::downgrade(&container), beginning, sandbox));
        Ok(container)
    }

    pub(crate) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// The process that stands for the container on the host: its sandbox's QEMU.
    pub(crate) fn pid(&self) -> u32 {
        self.sandbox.pid()
    }

    /// Whether its first process has ended.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.init.state(), State::Stopped(_))
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// # Errors
    /// `NotFound` for an exec that is not there.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() { Ok(self.init.clone()) } else { self.execs.get(exec_id) }
    }

    /// Runs the first process.
    ///
    /// # Errors
    /// An error unless the container is just created; else the guest's own words.
    pub(crate) async fn start(self: &Arc<Self>) -> Result<()> {
        let phase = self.phase.lock().await;
        if self.init.state() != State::Created {
            return Err(self.wrong_state("start"));
        }
        if self.owns_sandbox {
            self.sandbox.network().caught_up().await?;
        }
        let input = self.init.open_input()?;
        if let Err(error) = self.sandbox.ask(self.sandbox.agent().start_container(&self.id)).await {
            self.init.let_go_of_input();
            return Err(error);
        }
        self.sandbox.started();
        self.init.set_running();
        self.events.publish(event::TaskStart {
            container_id: self.id.clone(),
            pid: self.pid(),
            ..Default::default()
        });
        if let Some(io) = take(&self.io) {
            let io = Io { input, ..io };
            tokio::spawn(supervise::process(self.clone(), self.init.clone(), io));
        }
        if let Some(hooks) = &self.hooks {
            hooks.started().await;
        }
        drop(phase);
        Ok(())
    }

    /// Removes the container from the guest and its files from the share.
    ///
    /// # Errors
    /// While it runs.
    pub(crate) async fn delete(self: &Arc<Self>) -> Result<Exit> {
        let _phase = self.phase.lock().await;
        let exit = match self.init.state() {
            State::Running => return Err(self.wrong_state("delete")),
            State::Stopped(exit) => exit,
            State::Created => {
                let killed = self.sandbox.ask(self.sandbox.agent().signal_process(&self.id, "", SIGKILL));
                let _ = tokio::time::timeout(KILL, killed).await;
                let exit = Exit::now(LOST);
                supervise::publish_exit(self, &self.init, exit);
                exit
            }
        };
        if self.owns_sandbox {
            self.sandbox.stop("its container is deleted").await;
        } else if let Err(error) =
            self.sandbox.ask(self.sandbox.agent().remove_container(&self.id, REMOVE)).await
        {
            warn!(self.log, "the guest did not remove the container"; "why" => error.to_string());
        }
        drop((take(&self.io), take(&self.part)));
        self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.plugged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        if let Some(hooks) = &self.hooks {
            hooks.stopped().await;
        }
        info!(self.log, "deleted");
        Ok(exit)
    }

    /// Freezes every process of the container.
    ///
    /// # Errors
    /// Unless it runs.
    pub(crate) async fn pause(&self) -> Result<()> {
        let _phase = self.running("pause").await?;
        self.sandbox.ask(self.sandbox.agent().pause(&self.id)).await?;
        self.paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// Unless it is paused.
    pub(crate) async fn resume(&self) -> Result<()> {
        let _phase = self.phase.lock().await;
        if self.init.state() != State::Running || !self.is_paused() {
            return Err(self.wrong_state("resume"));
        }
        self.sandbox.ask(self.sandbox.agent().resume(&self.id)).await?;
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a process's terminal a size; one without a terminal has none, which is no error.
    ///
    /// # Errors
    /// The guest's own words.
    pub(crate) async fn resize(&self, process: &Process, rows: u32, columns: u32) -> Result<()> {
        // The guest makes the terminal of a container with it, that of an exec when it starts.
        let is_made = match process.state() {
            State::Running => true,
            State::Created => std::ptr::eq(process, Arc::as_ptr(&self.init)),
            State::Stopped(_) => false,
        };
        if !process.stdio.terminal || !is_made {
            return Ok(());
        }
        self.sandbox.ask(self.sandbox.agent().resize_tty(&self.id, &process.guest_id, rows, columns)).await
    }

    /// The container's resource use, in the terms of the host's cgroup version.
    ///
    /// # Errors
    /// The guest's own words.
    pub(crate) async fn stats(&self) -> Result<Any> {
        metrics::render(&self.guest_stats().await?, metrics::Version::of_host())
    }

    /// The same in the guest's terms.
    ///
    /// # Errors
    /// The guest's own words.
    pub(crate) async fn guest_stats(&self) -> Result<StatsContainerResponse> {
        if self.is_stopped() {
            return Err(self.wrong_state("measure"));
        }
        self.sandbox.ask(self.sandbox.agent().stats_container(&self.id)).await
    }

    /// Its output and input, as the guest names them.
    fn source(&self, process: &Process) -> Source {
        Source {
            agent: self.sandbox.agent().clone(),
            container: self.id.clone(),
            exec: process.guest_id.clone(),
            log: self.log.clone(),
        }
    }

    async fn running(&self, verb: &str) -> Result<MutexGuard<'_, ()>> {
        let phase = self.phase.lock().await;
        if self.init.state() != State::Running || self.is_paused() {
            return Err(self.wrong_state(verb));
        }
        Ok(phase)
    }

    fn wrong_state(&self, verb: &str) -> Error {
        let state = match self.init.state() {
            State::Created => "created",
            State::Running if self.is_paused() => "paused",
            State::Running => "running",
            State::Stopped(_) => "stopped",
        };
        // Without a status code of its own, as runc's shim answers: clients know these calls' errors as "unknown".
        Error::Failed(format!("cannot {verb} a {state} container"))
    }
}

/// Has the machine have the devices of a container. Returns what the agent is told of them; its volumes are in `guest`.
async fn plug(
    sandbox: &Arc<Sandbox>,
    guest: &mut GuestSpec,
    host_devices: Vec<host_devices::Asked>,
    plugged: &mut Vec<Arc<Plugged>>,
) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for disk in &guest.disks {
        let (disk, device) = disks::plug(sandbox, disk).await?;
        plugged.push(disk);
        devices.push(device);
    }
    for volume in &guest.direct {
        let (disk, storage) = direct::plug(sandbox, volume).await?;
        plugged.push(disk);
        guest.storages.push(storage);
    }
    let mut given = sandbox.host_devices().give(sandbox, host_devices).await?;
    given.add_files(guest.spec.linux_mut().get_or_insert_default());
    plugged.append(&mut given.plugged);
    devices.append(&mut given.told);
    Ok(devices)
}

/// Keeps what a container is made of until the guest has given up making it, which nobody waits for any more: a disk is
/// not taken from under a mount.
async fn given_up<T>(sandbox: Arc<Sandbox>, id: String, parts: T) {
    loop {
        let removed = tokio::select! {
            () = sandbox.gone() => break,
            removed = sandbox.ask(sandbox.agent().remove_container(&id, REMOVE)) => removed,
        };
        match removed {
            Ok(()) | Err(Error::NotFound(_)) => break,
            Err(_) => sleep(AGAIN).await,
        }
    }
    drop(parts);
}

/// Says what of the configuration no agent message has a field for, rather than dropping it in silence.
async fn warn_of_what_is_lost(sandbox: &Sandbox, spec: &Spec, log: &Logger) {
    let mut lost = convert::not_carried(spec);
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    if let Some(resources) = resources {
        lost.extend(limits::lost(sandbox, resources).await);
    }
    warn_of(&lost, log);
}

fn warn_of(lost: &[&str], log: &Logger) {
    if !lost.is_empty() {
        warn!(log, "not passed to the guest: its agent, or the protocol, has no field for it"; "fields" => lost.join(", "));
    }
}

fn take<T>(place: &Mutex<Option<T>>) -> Option<T> {
    place.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
}
