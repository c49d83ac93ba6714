//! What a pod may leave behind, and the search for it.
//!
//! Processes, mounts and cgroups have the pod's id in their names; what does not is known by what it belongs to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{DOORS, NAMESPACE, PodWorld, in_network};
use crate::command::run;
use crate::leak::{SETTLE, Suspects};
use crate::{Context, Failure, Result, check, eventually};

/// Who keeps bundles: of tasks, and of sandboxes that containerd 2 makes by the Sandbox API.
pub(super) const KEEPERS: [&str; 2] =
    ["io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"];

/// A pod's network on the host: what of it has no name that is made from the pod's.
pub(super) struct PodNetwork {
    /// Where its interface is.
    namespace: PathBuf,
    /// The number of that interface's other end, which no other has as long as the host runs.
    peer: u64,
}

impl PodNetwork {
    /// That of a pod that runs, which is known by its address.
    pub(super) fn of(world: &PodWorld, pod: &str) -> Result<PodNetwork> {
        let address = world.cri().pod_status(pod)?.network.context("the pod's network")?.ip;
        for namespace in namespaces(world) {
            // Others come and go meanwhile.
            let Ok(interfaces) = interfaces(File::open(&namespace)) else { continue };
            let mut own = interfaces.iter().filter(|interface| has(interface, &address));
            if let Some(peer) = own.find_map(|interface| interface["link_index"].as_u64()) {
                return Ok(PodNetwork { namespace, peer });
            }
        }
        Err(Failure::new(format!("no network namespace of the host's has the pod's address {address}")))
    }

    fn left(&self, world: &PodWorld) -> Result<Vec<String>> {
        let namespace = self.namespace.exists().then(|| format!("namespace {}", self.namespace.display()));
        let interfaces = interfaces(File::open(format!("/proc/{}/ns/net", world.host())))?;
        let peers = interfaces.iter().filter(|interface| interface["ifindex"] == self.peer);
        Ok(namespace.into_iter().chain(peers.map(|peer| format!("interface {}", peer["ifname"]))).collect())
    }
}

/// Waits until nothing of a pod that was removed is left; fails with the list of what still is.
pub(super) fn expect_nothing(world: &PodWorld, pod: &str, network: Option<&PodNetwork>) -> Result<()> {
    // No event tells that something of somebody else's is gone.
    eventually(SETTLE, || {
        let left = all(world, pod, network)?;
        check!(left.is_empty(), "left behind: {}", left.join("; "));
        Ok(())
    })
}

/// Everything of a pod that is there right now.
pub(super) fn all(world: &PodWorld, pod: &str, network: Option<&PodNetwork>) -> Result<Vec<String>> {
    let named = Suspects {
        namespace: pod.to_owned(),
        address: world.containerd_socket(),
        ids: Vec::new(),
        cgroup_may_stay: false,
    };
    let mut all = named.left();
    all.extend(Suspects { namespace: NAMESPACE.to_owned(), ids: vec![pod.to_owned()], ..named }.sockets());
    all.extend(directories(world, pod).iter().map(|path| format!("file {}", path.display())));
    all.extend(network.map(|network| network.left(world)).transpose()?.unwrap_or_default());
    Ok(all)
}

/// Run directory, door, bundles of the pod and its containers, and addresses that it was given.
fn directories(world: &PodWorld, pod: &str) -> Vec<PathBuf> {
    let own = [Path::new("/run/kata").join(NAMESPACE).join(pod), Path::new(DOORS).join(pod)];
    let bundles = KEEPERS.map(|keeper| world.dir().join("state").join(keeper).join(NAMESPACE));
    let bundles = bundles.iter().flat_map(|dir| entries(dir));
    let bundles = bundles.filter(|bundle| bundle.ends_with(pod) || says(&bundle.join("config.json"), pod));
    // host-local has a file for each, which says whose it is.
    let addresses = entries(&world.dir().join("addresses/pods")).filter(|file| says(file, pod));
    own.into_iter().filter(|path| path.exists()).chain(bundles).chain(addresses).collect()
}

fn says(file: &Path, word: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.contains(word))
}

/// Network namespaces of pods, as files in containerd's mount namespace.
fn namespaces(world: &PodWorld) -> impl Iterator<Item = PathBuf> + use<> {
    let root = PathBuf::from(format!("/proc/{}/root", world.host()));
    let state = root.join(world.dir().join("state").strip_prefix("/").unwrap_or(Path::new("")));
    entries(&state).flat_map(|plugin| entries(&plugin.join("netns")))
}

fn has(interface: &Value, address: &str) -> bool {
    let addresses = interface["addr_info"].as_array();
    addresses.into_iter().flatten().any(|one| one["local"] == address)
}

/// What there is in a network namespace.
fn interfaces(namespace: std::io::Result<File>) -> Result<Vec<Value>> {
    let said = in_network(namespace?, || {
        run(Command::new("ip").args(["-json", "addr"]), Duration::from_secs(10))?.exits(0)
    });
    let said = said.join().map_err(|_| Failure::new("the thread in a network namespace panicked"))??;
    Ok(serde_json::from_slice(&said.stdout)?)
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}
