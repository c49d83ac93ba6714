//! From nothing to a sandbox whose agent answers.

use std::{
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use agent_client::{AGENT_PORT, AgentClient, Code, Dialing, READY_PORT, Timeouts};
use agent_protocol::agent::{CreateSandboxRequest, KernelModule};
use configuration::Configuration;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use slog::{Logger, info, warn};
use tokio::{sync::watch, time::timeout};
use vmm::{
    BootError, Hypervisor, Listener, Vm, VmSpec,
    spec::{Boot, Origin},
};

use super::{
    Clock, Phase, Provided, Provisions, Sandbox,
    health::Health,
    host_cgroup::HostCgroup,
    keeping::Keeper,
    resources::Resources,
    run_dir,
    run_dir::RunDir,
    share::{HostFiles, SharedTree},
    vm_spec,
    vm_spec::MachinePlan,
};
use crate::{
    container::{disks::SharedDisks, host_devices::HostDevices, spec::Confinement},
    error::{Error, Result},
    factory::{self, Asleep, Kept, Maker, Ready},
    hooks::ContainerHooks,
    management::Door,
    network::{self, Network},
    stdio::wires::Offer,
};

/// The longest hostname Linux takes.
const LONGEST_HOSTNAME: usize = 64;

/// Where this host's random numbers come from, and how many bytes of them a copy gets.
const RANDOM: &str = "/dev/urandom";
const SEED: usize = 512;

/// How long a machine that was ready may take to go on. Another one boots in less than a guest has for a call.
const WAKING: Duration = Duration::from_secs(10);

/// What a sandbox is made from.
pub(super) struct Plan<'a> {
    pub(super) namespace: &'a str,
    pub(super) id: &'a str,
    pub(super) spec: &'a Spec,
    /// The host's programs that make its network.
    pub(super) hooks: Option<&'a Arc<ContainerHooks>>,
    /// What containers get of it.
    pub(super) provisions: &'a Provisions,
    pub(super) configuration: &'a Configuration,
}

/// A machine that runs, and what answers in it.
pub(crate) type MachineAndAgent = (Box<dyn Vm>, AgentClient);

/// Boots the machine, or takes the one that is ready if that is the same, and prepares the guest.
///
/// # Errors
/// What could not be had, in the operator's terms; nothing is left of the attempt then.
pub(super) async fn boot(
    plan: Plan<'_>,
    hypervisor: &dyn Hypervisor,
    ready: Option<Ready>,
    clock: Clock,
    log: &Logger,
) -> Result<Arc<Sandbox>> {
    let configuration = plan.configuration;
    let path = run_dir::path_of(plan.namespace, plan.id);
    let mut machine = vm_spec::of(configuration, &plan, &path, log)?;
    let (run_dir, tree, asleep) = place(path, configuration, ready, &machine.spec, log).await?;
    let (vcpus, own) = (machine.spec.vcpus, asleep.as_ref().map(|asleep| asleep.network.clone()));
    let network =
        Network::connect(plan.spec, plan.hooks, configuration, vcpus, own, run_dir.path(), log).await?;
    let booted =
        match boot_in(&network, &plan, &mut machine, asleep, hypervisor, &clock, run_dir.path(), log).await {
            Ok(booted) => booted,
            Err(error) => return Err(given_up(&network, error).await),
        };
    let Booted { machine: (vm, agent), door, cgroup, provided, resources, user } = booted;
    let sandbox = Arc::new(Sandbox {
        vm,
        network,
        host_files: HostFiles::of(tree, &agent, log),
        door,
        cgroup,
        run_dir,
        agent,
        health: Health::of(machine.spec.accelerator),
        offer: Offer::default(),
        confinement: Confinement::of(configuration),
        keeper: Keeper::of(configuration),
        plugs_root_disks: plugs_root_disks(configuration),
        shared_disks: SharedDisks::default(),
        host_devices: HostDevices::of(&machine.spec, configuration.runtime.vfio_mode),
        provided,
        resources,
        user: Mutex::new(user),
        since: SystemTime::now(),
        phase: watch::Sender::new(Phase::Up),
        clock,
        log: log.clone(),
    });
    sandbox.watch();
    sandbox.place_processors().await;
    info!(log, "sandbox is up"; "qemu" => sandbox.pid());
    Ok(sandbox)
}

/// Gives the network back after a boot that came to nothing, and whose machine is gone. A device of the host may take its
/// time, in which others are to be served.
pub(crate) async fn given_up(network: &Network, error: Error) -> Error {
    match network.disconnect().await {
        Ok(()) => error,
        Err(left) => Error::Failed(format!("{error}; {left}")),
    }
}

/// What a boot makes once there is a network. Dropped in this order, it ends the machine first.
struct Booted {
    machine: MachineAndAgent,
    door: Option<Door>,
    cgroup: Option<HostCgroup>,
    provided: Provided,
    resources: Resources,
    user: Option<OwnedFd>,
}

/// # Errors
/// As of [`boot`]; nothing is left but the network.
#[expect(clippy::too_many_arguments, reason = "what a boot is made from")]
async fn boot_in(
    network: &Network,
    plan: &Plan<'_>,
    machine: &mut MachinePlan,
    mut asleep: Option<Asleep>,
    hypervisor: &dyn Hypervisor,
    clock: &Clock,
    run_dir: &Path,
    log: &Logger,
) -> Result<Booted> {
    let configuration = plan.configuration;
    network.add_to(&mut machine.spec)?;
    clock.mark("network_joined");
    let resources = Resources::new(configuration, plan.spec, &machine.spec, log)?;
    let maker = Maker { hypervisor, configuration, storages: &machine.storages, log };
    // A copy gets its network interfaces while it runs.
    let has_room = network.is_empty() || machine.spec.pci.bridges() > 0;
    let may_be_copy = has_room && asleep.is_none();
    let origin = if may_be_copy { maker.origin_of(&machine.spec).await } else { Origin::Boot };
    clock.mark("origin_known");
    // A template is no sandbox's, so it is made before.
    let only = configuration.runtime.sandbox_cgroup_only;
    let user = asleep.as_mut().and_then(|asleep| asleep.user.take());
    let started = asleep.as_ref().map(|asleep| factory::pids(asleep.machine.0.as_ref())).unwrap_or_default();
    let cgroup = HostCgroup::enter(only, plan.spec, plan.id, run_dir, &started, log)?;
    let awake = match asleep {
        Some(asleep) if machine.spec.against_template().is_some() => {
            // What the network needs of a machine that is to boot was not known before.
            let _ = asleep.machine.0.stop(Duration::ZERO).await;
            None
        }
        Some(asleep) => wake(asleep, network, clock, log).await,
        None => None,
    };
    let (vm, agent) = match awake {
        Some(awake) => awake,
        None => start_anyhow(&maker, &machine.spec, origin, Some(network), clock).await?,
    };
    network.hand_over(vm.as_ref(), &machine.spec).await?;
    network.tell(&agent, log).await.map_err(in_containerds_terms)?;
    clock.mark("network_told");
    let door = Door::open(run_dir, plan.id, log);
    let request = sandbox_request(plan, machine.storages.clone());
    agent.create_sandbox(request).await.map_err(in_containerds_terms)?;
    let provided = plan.provisions.send(&agent).await.map_err(in_containerds_terms)?;
    Ok(Booted { machine: (vm, agent), door, cgroup, provided, resources, user })
}

/// The run directory of a sandbox, with what is in it; and the machine that is ready, if it is the sandbox's then.
async fn place(
    path: PathBuf,
    configuration: &Configuration,
    ready: Option<Ready>,
    spec: &VmSpec,
    log: &Logger,
) -> Result<(RunDir, Option<SharedTree>, Option<Asleep>)> {
    let shown = &configuration.runtime.bind_mounts;
    match ready {
        Some(ready)
            if ready.is_there() && Kept::of(configuration, spec).is_ok_and(|kept| kept == *ready.kept()) =>
        {
            let (run_dir, tree, asleep) = ready.move_to(path, shown)?;
            return Ok((run_dir, tree, Some(asleep)));
        }
        Some(ready) => {
            info!(log, "the machine that was kept ready is another than this sandbox needs, or has ended");
            ready.end().await;
        }
        None => {}
    }
    let run_dir = RunDir::create(path)?;
    let tree = SharedTree::of(spec, run_dir.path(), shown)?;
    Ok((run_dir, tree, None))
}

/// Has a machine that is ready go on. Nothing of it is left if it does not: there are other ways to have one.
async fn wake(
    Asleep { machine: (vm, agent), .. }: Asleep,
    network: &Network,
    clock: &Clock,
    log: &Logger,
) -> Option<MachineAndAgent> {
    let woken = async {
        vm.resume().await.map_err(|error| Error::Failed(error.to_string()))?;
        clock.mark("vm_runs");
        network.plug_into(vm.as_ref()).await?;
        make_different(&agent).await
    };
    let late = || Error::DeadlineExceeded(format!("it does not answer within {} s", WAKING.as_secs()));
    match timeout(WAKING, woken).await.unwrap_or_else(|_| Err(late())) {
        Ok(()) => {
            clock.mark("agent_answered");
            Some((vm, agent))
        }
        Err(why) => {
            warn!(log, "the machine that was kept ready is of no use: another one boots"; "why" => why.to_string());
            let _ = vm.stop(Duration::ZERO).await;
            None
        }
    }
}

/// Starts the machine from where it is to start, or by itself if that fails.
///
/// # Errors
/// Why it did not come up, in the operator's terms.
pub(crate) async fn start_anyhow(
    maker: &Maker<'_>,
    spec: &VmSpec,
    origin: Origin,
    network: Option<&Network>,
    clock: &Clock,
) -> Result<MachineAndAgent> {
    match start(maker, spec, origin.clone(), network, clock).await {
        Err(error) if origin != Origin::Boot => {
            maker.doubt(&origin, &error.to_string());
            start(maker, spec, Origin::Boot, network, clock).await
        }
        started => {
            maker.trust(&origin);
            started
        }
    }
}

/// Boards that take no devices later are given the files.
fn plugs_root_disks(configuration: &Configuration) -> bool {
    let hypervisor = &configuration.hypervisor;
    !hypervisor.disable_block_device_use && hypervisor.machine.capabilities().pci
}

/// Starts the machine and waits for its agent.
async fn start(
    maker: &Maker<'_>,
    spec: &VmSpec,
    origin: Origin,
    network: Option<&Network>,
    clock: &Clock,
) -> Result<MachineAndAgent> {
    let is_copy = origin != Origin::Boot;
    let nics = network.filter(|_| !is_copy).map(|network| network.nics()).unwrap_or_default();
    let own = network.map_or_else(|| spec.network.clone(), Network::own);
    let spec = VmSpec { origin, nics, network: own, ..spec.clone() };
    let vm = maker.hypervisor.boot(spec).await.map_err(|error| not_booted(&error, maker.configuration))?;
    clock.mark("vm_runs");
    if let Some(network) = network.filter(|_| is_copy) {
        network.plug_into(vm.as_ref()).await?;
    }
    let agent = reach_agent(vm.as_ref(), maker.configuration).await?;
    clock.mark("agent_answered");
    if is_copy {
        make_different(&agent).await?;
    }
    Ok((vm, agent))
}

/// What a copy must not have in common with its template and the other copies: random numbers, and the time.
async fn make_different(agent: &AgentClient) -> Result<()> {
    let mut seed = vec![0; SEED];
    File::open(RANDOM).and_then(|mut random| random.read_exact(&mut seed)).map_err(Error::io(RANDOM))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let both = tokio::try_join!(agent.reseed_random(seed), agent.set_date_time(now));
    both.map(drop).map_err(in_containerds_terms)
}

/// A machine of that configuration, for no sandbox in particular.
///
/// # Errors
/// `InvalidArgument` that names the key whose value, or whose program, cannot be used.
pub(crate) fn any_machine(
    configuration: &Configuration,
    id: &str,
    run_dir: &Path,
    log: &Logger,
) -> Result<MachinePlan> {
    planned(configuration, id, &Spec::default(), run_dir, log)
}

/// What a machine is like that a sandbox with that first container needs.
///
/// # Errors
/// As of [`any_machine`], and what no machine has that is kept ready.
pub(crate) fn needs(configuration: &Configuration, spec: &Spec, log: &Logger) -> Result<Kept> {
    let machine = planned(configuration, "ready", spec, Path::new("/"), log)?;
    Kept::of(configuration, &machine.spec)
}

fn planned(
    configuration: &Configuration,
    id: &str,
    spec: &Spec,
    run_dir: &Path,
    log: &Logger,
) -> Result<MachinePlan> {
    let provisions = Provisions::default();
    let plan = Plan { namespace: "factory", id, spec, hooks: None, provisions: &provisions, configuration };
    vm_spec::of(configuration, &plan, run_dir, log)
}

/// QEMU's words may not be about anything the operator wrote.
fn not_booted(error: &BootError, configuration: &Configuration) -> Error {
    let hypervisor = &configuration.hypervisor;
    Error::Failed(match error {
        BootError::Exited(_) | BootError::Qmp(_) => format!(
            "{error}; it is hypervisor.qemu.path = {:?} with machine_accelerators = {:?} and cpu_features = {:?}",
            hypervisor.path,
            hypervisor.machine.options().to_string(),
            hypervisor.cpu_features.to_string()
        ),
        _ => error.to_string(),
    })
}

/// What a guest that ends by itself, or never answers, is made of.
fn guest_of(configuration: &Configuration) -> String {
    let hypervisor = &configuration.hypervisor;
    let (key, path) = match &hypervisor.boot {
        Boot::Initrd(path) => ("initrd", path),
        Boot::Image { path, .. } => ("image", path),
    };
    format!("the guest is hypervisor.qemu.kernel = {:?} with {key} = {path:?}", hypervisor.kernel)
}

/// Waits for the agent, but not longer than the machine lives.
pub(crate) async fn reach_agent(vm: &dyn Vm, configuration: &Configuration) -> Result<AgentClient> {
    let vsock = vm.vsock();
    let notice = vsock.listen(READY_PORT).map(noticed);
    let dial = || {
        let vsock = vsock.clone();
        Box::pin(async move { Ok(vsock.connect(AGENT_PORT).await?.stream) }) as Dialing<'_, _>
    };
    let timeouts = Timeouts { create: configuration.runtime.create_container_timeout, ..Timeouts::default() };
    let mut exit = vm.exit();
    let reached = tokio::select! {
        reached = agent_client::reach(&dial, notice, timeouts, configuration.agent.dial_timeout) => {
            reached.map_err(|error| Error::DeadlineExceeded(format!("{error}; {}", guest_of(configuration))))
        }
        exit = exit.wait_for(Option::is_some) => {
            let how = exit.ok().and_then(|exit| exit.as_ref().map(ToString::to_string)).unwrap_or_default();
            Err(Error::Failed(format!(
                "the virtual machine ended before its agent answered: {how}; {}",
                guest_of(configuration)
            )))
        }
    };
    match reached {
        Ok(agent) => Ok(agent),
        Err(error) => Err(with_console(with_health(error, vm).await, &vm.console_tail())),
    }
}

/// Our guest's agent connects once it serves.
async fn noticed(mut listener: Listener) {
    if listener.recv().await.is_none() {
        // There is no guest any more, which others see as well.
        std::future::pending::<()>().await;
    }
}

/// An agent that does not answer may be the guest's doing, or QEMU's.
async fn with_health(error: Error, vm: &dyn Vm) -> Error {
    let Error::DeadlineExceeded(text) = error else { return error };
    Error::DeadlineExceeded(match vm.check().await {
        Ok(()) => text,
        Err(unwell) => format!("{text}; {unwell}"),
    })
}

/// What the guest last said tells more than that it did not answer.
fn with_console(error: Error, tail: &str) -> Error {
    if tail.is_empty() {
        return error;
    }
    let full = format!("{error}; the guest's console ended with: {tail}");
    match error {
        Error::DeadlineExceeded(_) => Error::DeadlineExceeded(full),
        _ => Error::Failed(full),
    }
}

fn sandbox_request(plan: &Plan<'_>, storages: Vec<agent_protocol::agent::Storage>) -> CreateSandboxRequest {
    let mut hostname = plan.spec.hostname().clone().unwrap_or_default();
    hostname.truncate(hostname.floor_char_boundary(LONGEST_HOSTNAME));
    let modules = plan.configuration.agent.kernel_modules.iter().map(|module| KernelModule {
        name: module.name.clone(),
        parameters: module.parameters.clone(),
        ..Default::default()
    });
    CreateSandboxRequest {
        hostname,
        storages,
        dns: network::resolver(plan.spec).into_iter().chain(plan.provisions.resolver()).collect(),
        sandbox_id: plan.id.to_string(),
        sandbox_pidns: shares_pid_namespace(plan.spec),
        kernel_modules: modules.collect(),
        guest_hook_path: plan.configuration.hypervisor.guest_hook_path.clone(),
        ..Default::default()
    }
}

fn shares_pid_namespace(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces
        .is_some_and(|all| all.iter().any(|ns| ns.typ() == LinuxNamespaceType::Pid && ns.path().is_some()))
}

/// An agent's refusal with the code containerd understands, anything else as what it is.
pub(super) fn in_containerds_terms(error: agent_client::Error) -> Error {
    let text = error.to_string();
    if error.is_unsupported() {
        return Error::Unimplemented(text);
    }
    let agent_client::Error::Guest { code, message, .. } = error else {
        return match error {
            agent_client::Error::Timeout { .. } => Error::DeadlineExceeded(text),
            agent_client::Error::Closed { .. } => Error::Unavailable(text),
            _ => Error::Failed(text),
        };
    };
    match code {
        Code::INVALID_ARGUMENT => Error::InvalidArgument(message),
        Code::NOT_FOUND => Error::NotFound(message),
        Code::ALREADY_EXISTS => Error::AlreadyExists(message),
        Code::FAILED_PRECONDITION => Error::FailedPrecondition(message),
        _ => Error::Failed(message),
    }
}
