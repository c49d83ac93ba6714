//! The pod's network: found in its network namespace, joined to the machine, told to the guest.
//!
//! ```text
//! namespace -> hooks -> scan -> plan -> record -> taps, redirection -> Network --dropped, disconnect--> as it was before
//! ```
//!
//! Network namespaces belong to threads, so what happens in the pod's happens on a thread that ends with it. A shim that
//! is killed takes its taps along; the rest is in the record, for [`sweep`].

mod join;
mod namespace;
mod plan;
mod random;
mod record;
mod resolver;
mod scan;
mod tap;
#[cfg(test)]
mod tests;
mod told;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use agent_client::{AgentClient, Code};
use configuration::{Configuration, InternetworkingModel, Rates};
use netlink::Netlink;
use oci_spec::runtime::Spec;
use slog::{Logger, info, warn};
use vmm::{
    Vm,
    plug::{Nic, Pluggable},
};

use crate::{
    error::{Error, Result},
    hooks::ContainerHooks,
    thread,
};
use join::Joined;
pub(crate) use namespace::path_in as namespace_of;
pub(crate) use record::sweep;
pub(crate) use resolver::lines as resolver;
use told::Told;

/// The longest list of queues a tap has (`MAX_TAP_QUEUES` of the kernel).
const MOST_QUEUES: u32 = 256;

/// Those of the namespace that a thread is in.
const COUNTERS: &str = "/proc/thread-self/net/dev";

/// What a sandbox has of its pod's network. Dropped, the namespace is what it was before.
pub(crate) struct Network {
    /// Where the namespace is, if there is one.
    path: Option<PathBuf>,
    nics: Vec<Arc<Nic>>,
    told: Told,
    joined: Mutex<Option<Joined>>,
}

/// The pod's network namespace.
enum Place {
    /// It is there.
    At(PathBuf),
    /// It is to be made.
    New,
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
        run_dir: &Path,
        log: &Logger,
    ) -> Result<Network> {
        let hooks = hooks.filter(|hooks| hooks.at_creation()).cloned();
        let model = configuration.runtime.internetworking_model;
        let place = match (namespace::path_in(spec), &hooks) {
            (_, None) if model == InternetworkingModel::None => return Ok(Network::none()),
            (Some(path), _) => Place::At(path),
            // Nobody but hooks could make anything of a new one.
            (None, Some(_)) => Place::New,
            (None, None) => return Ok(Network::none()),
        };
        let hypervisor = &configuration.hypervisor;
        let manner = Manner {
            model,
            queues: hypervisor.default_vcpus.clamp(1, MOST_QUEUES),
            vhost: !hypervisor.disable_vhost_net,
            rates: hypervisor.rates,
        };
        let run_dir = run_dir.to_path_buf();
        let join = move || Network::join(&place, hooks.as_deref(), manner, &run_dir);
        let network = thread::run("network", join).await?;
        for interface in &network.told.interfaces {
            info!(log, "network interface"; "name" => &interface.name, "mac" => &interface.hw_addr);
        }
        Ok(network)
    }

    fn none() -> Network {
        Network { path: None, nics: Vec::new(), told: Told::default(), joined: Mutex::new(None) }
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
            Place::New => None,
        };
        let mut netlink = match place {
            Place::At(_) => Netlink::open(),
            Place::New => namespace::enter_new(),
        }
        .map_err(Error::io("network namespace"))?;
        if let Some(hooks) = hooks {
            hooks.create()?;
        }
        if manner.model == InternetworkingModel::None {
            return Ok(Network::none());
        }
        let found = scan::found(&mut netlink).map_err(Error::io("the pod's network"))?;
        let mut keep = |link| netlink.save(link).map_err(Error::io("addresses and routes"));
        let steps = plan::steps(&found, manner, &mut keep)?;
        // One that is ours alone ends with us.
        if let Some((path, identity)) = identity {
            record::write(run_dir, path, identity, &steps)?;
        }
        let mut joined = Joined::new(netlink);
        let mut nics = Vec::new();
        for step in &steps {
            nics.push(Arc::new(joined.take(step, manner)?));
        }
        let path = identity.map(|(path, _)| path.clone());
        Ok(Network { path, nics, told: Told::of(&found), joined: Mutex::new(Some(joined)) })
    }

    /// The interfaces for a machine that boots.
    pub(crate) fn nics(&self) -> &[Arc<Nic>] {
        &self.nics
    }

    /// Gives a machine that runs its interfaces.
    ///
    /// # Errors
    /// What the machine has no room for, or QEMU's refusal.
    pub(crate) async fn plug_into(&self, vm: &dyn Vm) -> Result<()> {
        for nic in &self.nics {
            let nic = nic.try_clone().map_err(Error::io("descriptors of a tap"))?;
            let plugged = vm.plug(Pluggable::Nic(nic)).await;
            plugged.map_err(|error| Error::Failed(format!("plug in a network interface: {error}")))?;
        }
        Ok(())
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
        let Some(path) = self.path.clone() else { return Ok(String::new()) };
        thread::run("counters", move || {
            namespace::enter(&path)?;
            std::fs::read_to_string(COUNTERS).map_err(Error::io(COUNTERS))
        })
        .await
    }

    /// Makes the namespace what it was before. The machine must be gone.
    pub(crate) async fn disconnect(&self) {
        let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner).take();
        if joined.is_some() {
            // The kernel may have others to serve first who change networks.
            let _ = thread::run("network", move || {
                drop(joined);
                Ok(())
            })
            .await;
        }
    }
}
