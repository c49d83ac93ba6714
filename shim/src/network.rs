//! The pod's network: found in its network namespace, joined to the machine, told to the guest.
//!
//! ```text
//! namespace -> hooks -> scan -> plan -> record -> taps, redirection -> Network --dropped, disconnect--> as it was before
//!                        ^------------------ news, while the machine runs -----------'
//! ```
//!
//! Network namespaces belong to threads, so what happens in the pod's happens on a thread that ends with it. A shim that
//! is killed takes its taps along; the rest is in the record, for [`sweep`].

mod follow;
pub(crate) mod forward;
mod join;
mod names;
mod namespace;
mod physical;
mod plan;
mod random;
mod record;
mod resolver;
mod scan;
mod tap;
#[cfg(test)]
mod tests;
mod told;
mod vhost_user;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use agent_client::{AgentClient, Code};
use configuration::{Configuration, InternetworkingModel, Rates};
use netlink::{Netlink, Watch};
use oci_spec::runtime::Spec;
use slog::{Logger, info, warn};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use vmm::{
    Vm, VmSpec,
    plug::{DeviceId, Nic, Pluggable},
    spec::{PassThrough, Vcpus, VhostUser},
    vfio::HostDevice,
};

use crate::{
    container::bundle,
    error::{Error, Result},
    hooks::ContainerHooks,
    sandbox::Sandbox,
    thread,
};
use follow::{Follower, Member, Question, Shared};
use join::{Joined, Joint};
use namespace::Identity;
pub(crate) use namespace::path_in as namespace_of;
use record::Record;
pub(crate) use record::{outstanding, sweep};
pub(crate) use resolver::lines as resolver;
use scan::Found;
use told::Told;

/// The longest list of queues a tap has (`MAX_TAP_QUEUES` of the kernel).
const MOST_QUEUES: u32 = 256;

/// How long a start may wait for a network that was made just before it.
const CAUGHT_UP: Duration = Duration::from_secs(60);

/// How long anybody waits for the namespace to be what it was.
const UNDOING: Duration = Duration::from_secs(30);

/// Those of the namespace that a thread is in.
const COUNTERS: &str = "/proc/thread-self/net/dev";

/// What a sandbox has of its pod's network. Dropped, the namespace is what it was before.
pub(crate) struct Network {
    /// Where the namespace is, if there is one.
    path: Option<PathBuf>,
    /// The same, if who connects to localhost there is to reach the guest's.
    forwards_from: Option<(PathBuf, Identity)>,
    /// One that nobody else has made.
    own: Option<Arc<OwnedFd>>,
    /// Until the machine is gone, with the interface's number.
    nics: Mutex<Vec<(u32, Arc<Nic>)>>,
    vhost_user: Vec<VhostUser>,
    /// With the numbers that the interfaces had.
    devices: Vec<(u32, HostDevice)>,
    told: Told,
    joined: Shared,
    /// What a running machine was given for which interfaces.
    plugged: Mutex<Vec<(u32, DeviceId)>>,
    news: Mutex<Option<News>>,
    /// What tells a container that has its own namespace where to ask for names.
    resolver: Option<PathBuf>,
    /// Whom to ask whether the machine has what has come.
    follower: OnceLock<mpsc::Sender<Question>>,
}

/// What has come since the first look.
struct News {
    watch: Watch,
    found: Vec<Found>,
}

/// The pod's network namespace.
enum Place {
    /// It is there.
    At(PathBuf),
    /// It is that of a machine that is there already.
    Of(Arc<OwnedFd>),
    /// It is to be made.
    New,
}

/// An empty network namespace, which lasts as long as who is in it, and what refers to it.
///
/// # Errors
/// What the kernel refused.
pub(crate) async fn new_namespace() -> Result<Arc<OwnedFd>> {
    let make = || {
        namespace::enter_new().map_err(Error::io("network namespace"))?;
        namespace::own()
    };
    Ok(Arc::new(thread::run("network", make).await?.into()))
}

/// Takes this thread into the network namespace at `path`, for as long as the thread lives.
///
/// # Errors
/// `InvalidArgument` for what is no network namespace, or cannot be entered.
pub(crate) fn enter(path: &Path) -> Result<()> {
    namespace::enter(path).map(drop)
}

/// How a network is to be joined to a machine.
#[derive(Clone, Copy)]
struct Manner {
    model: InternetworkingModel,
    /// Of each interface.
    queues: u32,
    /// Whether the kernel may move packets.
    vhost: bool,
    rates: Rates,
    /// Whether the machine takes devices of the host, and somebody will know to give them back.
    passes_through: bool,
    /// Whether the machine runs already.
    is_late: bool,
}

impl Network {
    /// Joins the network in the namespace that `spec` names, once the hooks have made it. Without one, or where the
    /// operator wants none, there is nothing to join, and the guest has its loopback alone.
    ///
    /// # Errors
    /// What kind of interface cannot be had, what the kernel refused, or a hook that did not end well; the namespace is
    /// as it was before us.
    pub(crate) async fn connect(
        spec: &Spec,
        hooks: Option<&Arc<ContainerHooks>>,
        configuration: &Configuration,
        vcpus: Vcpus,
        ready: Option<Arc<OwnedFd>>,
        run_dir: &Path,
        log: &Logger,
    ) -> Result<Network> {
        let hooks = hooks.filter(|hooks| hooks.at_creation()).cloned();
        let model = configuration.runtime.internetworking_model;
        let path = namespace::path_in(spec);
        // A namespace that is not a pod's may be of others, whose own localhost it is.
        let forwards = configuration.runtime.forwards_ports && bundle::is_pod(spec);
        let forwards_from = path.clone().filter(|_| forwards);
        let forwards_from =
            forwards_from.and_then(|path| Identity::at(&path).map(|identity| (path, identity)));
        let place = match (path, &hooks) {
            (_, None) if model == InternetworkingModel::None => None,
            (Some(path), _) => Some(Place::At(path)),
            // What a machine is in that waited is as new.
            (None, _)
                if let Some(ready) = ready
                    && (hooks.is_some() || namespace::is_asked_for(spec)) =>
            {
                Some(Place::Of(ready))
            }
            // Hooks make something of a new one, or whoever finds it by the machine's process: Docker, once that runs.
            (None, Some(_)) => Some(Place::New),
            (None, None) if namespace::is_asked_for(spec) => Some(Place::New),
            (None, None) => None,
        };
        let Some(place) = place else { return Ok(Network { forwards_from, ..Network::none() }) };
        let hypervisor = &configuration.hypervisor;
        let manner = Manner {
            model,
            queues: vcpus.boot().clamp(1, MOST_QUEUES),
            vhost: !hypervisor.disable_vhost_net,
            rates: hypervisor.rates,
            passes_through: hypervisor.pass_through != PassThrough::Never && matches!(place, Place::At(_)),
            is_late: false,
        };
        let run_dir = run_dir.to_path_buf();
        let join = move || Network::join(&place, hooks.as_deref(), manner, &run_dir);
        let network = thread::run("network", join).await?;
        let network = Network { resolver: resolver::file(spec).cloned(), forwards_from, ..network };
        for interface in &network.told.interfaces {
            info!(log, "network interface"; "name" => &interface.name, "mac" => &interface.hw_addr);
        }
        Ok(network)
    }

    fn none() -> Network {
        Network::of(None, Vec::new(), Told::default(), None, None)
    }

    fn of(
        path: Option<PathBuf>,
        joints: Vec<(u32, Joint)>,
        told: Told,
        joined: Option<Joined>,
        news: Option<News>,
    ) -> Network {
        let (mut nics, mut vhost_user, mut devices) = (Vec::new(), Vec::new(), Vec::new());
        for (link, joint) in joints {
            match joint {
                Joint::Nic(nic) => nics.push((link, Arc::new(nic))),
                Joint::VhostUser(device) => vhost_user.push(device),
                Joint::Device(device) => devices.push((link, device)),
            }
        }
        let (nics, joined) = (Mutex::new(nics), Arc::new(Mutex::new(joined)));
        let (plugged, news) = (Mutex::default(), Mutex::new(news));
        let follower = OnceLock::new();
        let (forwards_from, own, resolver) = (None, None, None);
        Network {
            path,
            forwards_from,
            own,
            nics,
            vhost_user,
            devices,
            told,
            joined,
            plugged,
            news,
            resolver,
            follower,
        }
    }

    /// On a thread of its own, which is in the pod's namespace from here on.
    fn join(
        place: &Place,
        hooks: Option<&ContainerHooks>,
        manner: Manner,
        run_dir: &Path,
    ) -> Result<Network> {
        let identity = match place {
            Place::At(path) => Some((path, namespace::enter(path)?)),
            Place::Of(ready) => {
                namespace::enter_again(ready)?;
                None
            }
            Place::New => None,
        };
        let mut netlink = match place {
            Place::At(_) | Place::Of(_) => Netlink::open(),
            Place::New => namespace::enter_new(),
        }
        .map_err(Error::io("network namespace"))?;
        if let Some(hooks) = hooks {
            hooks.create()?;
        }
        if manner.model == InternetworkingModel::None {
            return Ok(Network::none());
        }
        let watch = Watch::open().map_err(Error::io("news of the pod's network"))?;
        let found = scan::found(&mut netlink).map_err(Error::io("the pod's network"))?;
        // One that is ours alone ends with us.
        let record = identity.map(|(path, identity)| Record::new(run_dir, path, identity));
        let mut joined = Joined::new(netlink, manner, record)?;
        let joints = match joined.join(&found) {
            Ok(joints) => found.iter().map(|found| found.link.index).zip(joints).collect(),
            Err(error) => return Err(joined.given_up(error)),
        };
        let path = identity.map(|(path, _)| path.clone());
        let told = Told::of(&found);
        let own = path.is_none().then(namespace::own).transpose()?;
        let network = Network::of(path, joints, told, Some(joined), Some(News { watch, found }));
        Ok(Network { own: own.map(|own| Arc::new(own.into())), ..network })
    }

    /// The namespace that the machine is to be found in, where others find it by the machine alone.
    pub(crate) fn own(&self) -> Option<Arc<OwnedFd>> {
        self.own.clone()
    }

    /// Where the namespace is from which the guest's ports are to be reached.
    fn forwards_from(&self) -> Option<(PathBuf, Identity)> {
        self.forwards_from.clone()
    }

    /// Whether there is any interface.
    pub(crate) fn is_empty(&self) -> bool {
        self.told.interfaces.is_empty()
    }

    /// The interfaces for a machine that boots.
    pub(crate) fn nics(&self) -> Vec<Arc<Nic>> {
        // Those of a machine that came to nothing.
        lock(&self.plugged).clear();
        lock(&self.nics).iter().map(|(_, nic)| nic.clone()).collect()
    }

    /// Has a machine that is to boot have what it can only have from the start.
    ///
    /// # Errors
    /// There is no place for it.
    pub(crate) fn add_to(&self, machine: &mut VmSpec) -> Result<()> {
        machine.vhost_user.extend(self.vhost_user.iter().cloned());
        if let PassThrough::Cold { devices, .. } = &mut machine.pass_through {
            devices.extend(self.devices.iter().map(|(_, device)| device.clone()));
        }
        machine.check().map_err(|error| Error::InvalidArgument(format!("the pod's network: {error}")))
    }

    /// Gives a machine that runs the devices of the host that it has not had from the start.
    ///
    /// # Errors
    /// What the machine has no room for, or QEMU's refusal.
    pub(crate) async fn hand_over(&self, vm: &dyn Vm, machine: &VmSpec) -> Result<()> {
        if matches!(machine.pass_through, PassThrough::Cold { .. }) {
            return Ok(());
        }
        for (_, device) in &self.devices {
            let plugged = vm.plug(Pluggable::HostDevice(device.clone())).await;
            plugged.map_err(|error| Error::Failed(format!("network interface {device}: {error}")))?;
        }
        Ok(())
    }

    /// Gives a machine that runs its interfaces.
    ///
    /// # Errors
    /// What the machine has no room for, or QEMU's refusal.
    pub(crate) async fn plug_into(&self, vm: &dyn Vm) -> Result<()> {
        lock(&self.plugged).clear();
        let nics = lock(&self.nics).clone();
        for (link, nic) in nics {
            let nic = nic.try_clone().map_err(Error::io("descriptors of a tap"))?;
            let plugged = vm.plug(Pluggable::Nic(nic)).await;
            let plugged =
                plugged.map_err(|error| Error::Failed(format!("plug in a network interface: {error}")))?;
            lock(&self.plugged).push((link, plugged.id));
        }
        Ok(())
    }

    /// Has the machine of `sandbox` have what comes to the pod's network from now on, and lose what goes.
    pub(crate) fn follow(sandbox: &Arc<Sandbox>, log: &Logger) {
        let network = sandbox.network();
        let Some(News { watch, found }) = lock(&network.news).take() else { return };
        let plugged = std::mem::take(&mut *lock(&network.plugged));
        let stripped = |link| lock(&network.joined).as_ref().is_some_and(|joined| joined.is_stripped(link));
        let member = |found: Found| {
            let link = found.link.index;
            let device = plugged.iter().find(|(its, _)| *its == link).map(|(_, device)| device.clone());
            let is_taken = network.devices.iter().any(|(its, _)| *its == link);
            Member::new(found, device, stripped(link)).taken(is_taken)
        };
        let members = found.into_iter().map(member).collect();
        // A container starts once.
        let (asks, questions) = mpsc::channel(1);
        let names = network.own().zip(network.resolver.clone());
        match Follower::new(watch, network.joined.clone(), members, names, log.clone()) {
            Ok(follower) => {
                let _ = network.follower.set(asks);
                tokio::spawn(follower.run(Arc::downgrade(sandbox), sandbox.going(), questions));
            }
            Err(why) => warn!(log, "the pod's network is not followed"; "why" => why.to_string()),
        }
    }

    /// Waits until the machine has what its own namespace has by now: Docker makes a container's network between its
    /// creation and its start, and what is started may want it at once.
    ///
    /// # Errors
    /// What the machine does not have, and why.
    pub(crate) async fn caught_up(&self) -> Result<()> {
        let Some(follower) = self.follower.get().filter(|_| self.own.is_some()) else { return Ok(()) };
        let (question, answer) = oneshot::channel();
        let asked = async {
            // A follower that has gone has gone with the machine, which others see as well.
            if follower.send(question).await.is_err() {
                return Ok(());
            }
            answer.await.unwrap_or(Ok(()))
        };
        let late = || {
            let patience = CAUGHT_UP.as_secs();
            Error::DeadlineExceeded(format!(
                "the container's network is not in its machine within {patience} s"
            ))
        };
        timeout(CAUGHT_UP, asked).await.unwrap_or_else(|_| Err(late()))
    }

    /// Has the guest set its side up.
    ///
    /// # Errors
    /// The agent's refusal.
    pub(crate) async fn tell(
        &self,
        agent: &AgentClient,
        log: &Logger,
    ) -> std::result::Result<(), agent_client::Error> {
        for interface in &self.told.interfaces {
            agent.update_interface(interface.clone()).await?;
        }
        if !self.told.routes.is_empty() {
            agent.update_routes(self.told.routes.clone()).await?;
        }
        if self.told.neighbours.is_empty() {
            return Ok(());
        }
        match agent.add_arp_neighbors(self.told.neighbours.clone()).await {
            Err(agent_client::Error::Guest { code: Code::UNIMPLEMENTED, .. }) => {
                warn!(log, "the guest's agent takes no neighbours: they are asked for by ARP");
                Ok(())
            }
            other => other,
        }
    }

    /// What the kernel counts of the namespace's interfaces, as `/proc/net/dev` has it; nothing without one.
    ///
    /// # Errors
    /// The namespace is gone.
    pub(crate) async fn counters(&self) -> Result<String> {
        let (path, own) = (self.path.clone(), self.own());
        if path.is_none() && own.is_none() {
            return Ok(String::new());
        }
        thread::run("counters", move || {
            path.as_deref().map_or(Ok(()), enter)?;
            own.as_deref().map_or(Ok(()), namespace::enter_again)?;
            std::fs::read_to_string(COUNTERS).map_err(Error::io(COUNTERS))
        })
        .await
    }

    /// Makes the namespace what it was before. The machine must be gone.
    ///
    /// # Errors
    /// Which devices of the host are not given back, or that it is not known yet; the record names them.
    pub(crate) async fn disconnect(&self) -> Result<()> {
        lock(&self.nics).clear();
        if let Ok(mut joined) = self.joined.try_lock()
            && joined.as_ref().is_none_or(Joined::is_bare)
        {
            // Nothing is being joined either.
            drop(joined.take());
            return Ok(());
        }
        let joined = self.joined.clone();
        // Something may be being joined still, and the kernel have others to serve first who change networks.
        let undone =
            thread::run("network", move || lock(&joined).take().map_or(Ok(()), |mut joined| joined.undo()));
        // A device of the host may take its time to be reset; the thread goes on.
        let late = || {
            let patience = UNDOING.as_secs();
            Error::DeadlineExceeded(format!("the pod's network is not what it was within {patience} s"))
        };
        timeout(UNDOING, undone).await.unwrap_or_else(|_| Err(late()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
