//! The pod: its containers, what they share, and what is mounted for it.

mod containers;
mod host_names;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agent_protocol::agent::{CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest, Storage};
use tokio::sync::Notify;

use crate::{
    console,
    container::Container,
    devices::{Devices, Given},
    error::Error,
    hooks::GuestHooks,
    id::Id,
    modules, namespaces,
    oom::OomWatch,
    reaper::Reaper,
    runtime::{self, spec::Shared},
    stdio::arrivals::{Arrivals, Connections, Ports},
    storage::Mounts,
    swap,
};
use containers::Containers;

/// All there is in the guest.
pub(crate) struct Sandbox {
    reaper: Arc<Reaper>,
    oom: Arc<OomWatch>,
    arrivals: Arc<Arrivals>,
    devices: Arc<Devices>,
    started: Notify,
    mounts: Mounts,
    containers: Containers,
    pod: Mutex<Option<Pod>>,
}

/// What CreateSandbox has set up.
#[derive(Default)]
struct Pod {
    shared: Shared,
    mounted: Vec<PathBuf>,
    /// Mount points of virtio-fs among them.
    virtio_fs: Vec<PathBuf>,
    shares_pids: bool,
    hooks: GuestHooks,
}

impl Sandbox {
    /// An empty sandbox, on the event loop this is called in.
    pub(crate) fn new(reaper: Arc<Reaper>) -> Result<Self, Error> {
        console::set_up()?;
        let oom = OomWatch::start()?;
        let arrivals = Arrivals::start();
        let devices = Devices::start()?;
        let (started, mounts, containers, pod) = Default::default();
        Ok(Self { reaper, oom, arrivals, devices, started, mounts, containers, pod })
    }

    pub(crate) fn oom(&self) -> &OomWatch {
        &self.oom
    }

    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The connections of processes' streams that have yet to be claimed.
    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.containers.find(&Id::parse("container", id)?)
    }

    /// Sets the pod up: modules, storages, host name, name servers, shared namespaces.
    pub(crate) async fn create(&self, request: CreateSandboxRequest) -> Result<(), Error> {
        if self.pod().is_some() {
            return Err(Error::Exists { kind: "sandbox", id: request.sandbox_id });
        }
        for module in &request.kernel_modules {
            modules::ask_for(&module.name, &module.parameters)?;
        }
        let hooks = GuestHooks::find(&request.guest_hook_path)?;
        host_names::set(&request.hostname, &request.dns)?;
        let storages = self.devices.named(&request.storages).await?;
        let mounted = self.mounts.add(&self.reaper, &storages, Vec::new()).await?;
        let virtio_fs = request.storages.iter().filter(|storage| storage.driver == "virtio-fs");
        let virtio_fs = virtio_fs.map(|storage| storage.mount_point.clone().into()).collect();
        match namespaces::make(&request.hostname) {
            Ok(shared) => {
                let shares_pids = request.sandbox_pidns;
                *self.pod() = Some(Pod { shared, mounted, virtio_fs, shares_pids, hooks });
                Ok(())
            }
            Err(text) => {
                self.mounts.remove(&self.reaper, &mounted).await?;
                Err(Error::Worker(text))
            }
        }
    }

    pub(crate) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// Ends and removes everything. A step that fails does not keep the others from being tried.
    pub(crate) async fn destroy(&self) -> Result<(), Error> {
        if self.goes_with_its_machine() {
            return self.write_back().await;
        }
        let mut first = Ok(());
        for id in self.containers.ids() {
            first = first.and(self.remove_container(&id).await);
        }
        let pod = self.pod().take().unwrap_or_default();
        first = first.and(self.mounts.remove(&self.reaper, &pod.mounted).await);
        first = first.and(self.mounts.clear(&self.reaper).await);
        namespaces::release();
        first
    }

    /// Whether nothing of it outlives the guest but what was written to shares. A sandbox that still has containers ends
    /// with its machine; disks are left in order all the same, and programs of the image's are told.
    fn goes_with_its_machine(&self) -> bool {
        let tells = self.pod().as_ref().is_some_and(|pod| !pod.hooks.is_empty());
        !self.containers.ids().is_empty() && !tells && !self.mounts.have_disks()
    }

    /// Ends all processes, and has the host know of all that they have written.
    async fn write_back(&self) -> Result<(), Error> {
        let mut first = Ok(());
        for id in self.containers.ids() {
            if let Ok(container) = self.containers.find(&id) {
                first = first.and(container.end().await);
            }
        }
        first.and(self.mounts.write_back().await)
    }

    /// Makes a container, with its storages.
    pub(crate) async fn create_container(&self, request: CreateContainerRequest) -> Result<(), Error> {
        let id = Id::parse("container", &request.container_id)?;
        let (stdin, stdout, stderr) = (request.stdin_port, request.stdout_port, request.stderr_port);
        let connections = self.arrivals.claim(Ports { stdin, stdout, stderr }).await?;
        let slot = self.containers.reserve(&id)?;
        let storages = self.devices.named(&request.storages).await?;
        let given = self.devices.of_container(&request.devices).await?;
        let submounts = self.submounts(&request);
        let mounted = self.mounts.add(&self.reaper, &storages, submounts).await?;
        match self.make_container(&id, &request, given, connections).await {
            Ok(container) => {
                slot.fill(container, mounted);
                Ok(())
            }
            Err(error) => {
                containers::clean_up(&self.reaper, &id).await.unwrap_or_else(log);
                self.mounts.remove(&self.reaper, &mounted).await.unwrap_or_else(log);
                containers::remove_bundle(&id).unwrap_or_else(log);
                Err(error)
            }
        }
    }

    /// The directories a container wants of virtio-fs.
    fn submounts(&self, request: &CreateContainerRequest) -> Vec<PathBuf> {
        let root = request.oci.root.path.as_str();
        let sources = request.oci.mounts.iter().map(|mount| mount.source.as_str());
        let wanted = std::iter::once(root).chain(sources).map(PathBuf::from);
        let pod = self.pod();
        let shares = pod.as_ref().map(|pod| pod.virtio_fs.as_slice()).unwrap_or_default();
        // A share is the sandbox's own to unmount.
        wanted.filter(|path| shares.iter().any(|share| path != share && path.starts_with(share))).collect()
    }

    async fn make_container(
        &self,
        id: &Id,
        request: &CreateContainerRequest,
        given: Given,
        connections: Connections,
    ) -> Result<Container, Error> {
        let mut spec = containers::adapt(id, request, &self.shared(request.sandbox_pidns), &given)?;
        let hooks = self.pod().as_ref().map(|pod| pod.hooks.clone()).unwrap_or_default();
        hooks.add_to(&mut spec, &runtime::bundle(id))?;
        let container =
            Container::create(&self.reaper, id.clone(), spec, given.addresses, connections).await?;
        self.oom.add(id, container.cgroup().path())?;
        self.share_pids(&container)?;
        Ok(container)
    }

    fn shared(&self, pids: bool) -> Shared {
        let mut shared = self.pod().as_ref().map(|pod| pod.shared.clone()).unwrap_or_default();
        if !pids {
            shared.pid = None;
        }
        shared
    }

    /// The first container's process namespace is the pod's, if the pod is to have one.
    fn share_pids(&self, container: &Container) -> Result<(), Error> {
        let mut pod = self.pod();
        if let Some(pod) = pod.as_mut().filter(|pod| pod.shares_pids && pod.shared.pid.is_none()) {
            let pinned = namespaces::pin_pid(container.init().pid()).map_err(Error::Worker)?;
            pod.shared.pid = Some(pinned);
        }
        Ok(())
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<(), Error> {
        self.container(id)?.start(&self.reaper).await?;
        self.started.notify_one();
        Ok(())
    }

    /// Returns once a container has been started; for one caller.
    pub(crate) async fn first_start(&self) {
        self.started.notified().await;
    }

    pub(crate) async fn exec(&self, request: &ExecProcessRequest) -> Result<(), Error> {
        let (stdin, stdout, stderr) = (request.stdin_port, request.stdout_port, request.stderr_port);
        let connections = self.arrivals.claim(Ports { stdin, stdout, stderr }).await?;
        self.container(&request.container_id)?.exec(&self.reaper, request, connections).await
    }

    /// Ends a container and removes all of it. May be asked again if it fails.
    pub(crate) async fn remove_container(&self, id: &Id) -> Result<(), Error> {
        let removal = self.containers.start_removal(id)?;
        removal.container().end().await?;
        // While the counter is still there to be read.
        self.oom.look();
        containers::clean_up(&self.reaper, id).await?;
        self.mounts.remove(&self.reaper, removal.mounted()).await?;
        containers::remove_bundle(id)?;
        removal.finish();
        Ok(())
    }

    /// Swaps to the disk in these slots, once it is there.
    pub(crate) async fn add_swap_disk(&self, path: &[u32]) -> Result<(), Error> {
        let file = self.devices.disk_at(path).await?;
        self.add_swap(&file).await
    }

    pub(crate) async fn add_swap(&self, path: &str) -> Result<(), Error> {
        swap::add(&self.reaper, path).await
    }

    pub(crate) async fn update_mounts(&self, storages: &[Storage]) -> Result<(), Error> {
        self.mounts.change(&self.reaper, storages).await
    }

    fn pod(&self) -> MutexGuard<'_, Option<Pod>> {
        self.pod.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(error: Error) {
    ::log::warn!("clean up: {}", crate::error::chain(&error));
}
