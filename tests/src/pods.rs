//! Pods by containerd's CRI, as kubelet makes them: a containerd in a network of its own, with a bridge for the pods.

mod left;
mod manifests;
mod page;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::assets::Assets;
use crate::case::{IMAGE, PATIENCE};
use crate::command::{run, tail};
use crate::containerd::Containerd;
use crate::cri::{Cri, image_of};
use crate::{Context, Failure, Result, check, eventually, fail, operator};
use left::{KEEPERS, PodNetwork};
use manifests::RuntimeClass;
pub use manifests::containers_of_the_page;
pub use page::snippet;
use page::{Dialect, network, sandbox_api_switch};

/// Where operators' tools look for sandboxes.
const DOORS: &str = "/run/vc/sbs";

/// The image that a sandbox's own container is of.
const PAUSE: &str = "localhost/pause:latest";

/// What containerd 1.7 says when it makes pods by its Sandbox API.
const SANDBOX_SERVER: &str = "using experimental CRI Sandbox server";

/// containerd's namespace for pods.
pub const NAMESPACE: &str = "k8s.io";

/// How long CRI may take to see an image that was imported.
const IMAGES: Duration = Duration::from_secs(30);

/// The shim's program.
const SHIM: &str = "containerd-shim-kata-v2";

/// What pods may ask of their machine.
const ANNOTATIONS: [&str; 6] = [
    "kernel_params",
    "rx_rate_limiter_max_rate",
    "tx_rate_limiter_max_rate",
    "runtime.sandbox_cgroup_only",
    "default_max_vcpus",
    "runtime.enable_vcpus_pinning",
];

/// A containerd with CRI and the test images.
pub struct PodWorld {
    // Fields drop in this order: what is inside the directory goes before the directory.
    cri: Cri,
    containerd: Containerd,
    dir: TempDir,
    assets: Assets,
    class: RuntimeClass,
    overhead: LinuxContainerResources,
    pods: AtomicUsize,
}

impl PodWorld {
    /// The memory that the page's class adds to each pod, in KiB.
    pub fn overhead_kib(&self) -> f64 {
        self.overhead.memory_limit_in_bytes as f64 / 1024.0
    }

    /// Starts containerd, and waits until CRI knows the images.
    pub fn new() -> Result<PodWorld> {
        let assets = Assets::find()?;
        // Short, for the sake of socket names below it: sun_path has 108 bytes.
        let dir = tempfile::Builder::new().prefix("kp").tempdir_in("/tmp")?;
        operator::written(&assets, dir.path(), "configuration.toml", |file| {
            // Many pods at once keep each other waiting where processors are emulated.
            file.set("runtime.create_container_timeout", 200).set("agent.kata.dial_timeout", 180);
            file.set("hypervisor.qemu.enable_annotations", ANNOTATIONS.to_vec());
        })?;
        fs::create_dir(dir.path().join("cni"))?;
        fs::write(dir.path().join("cni/10-bridge.conflist"), network(dir.path()))?;
        let class = RuntimeClass::of_the_page()?;
        let overhead = class.overhead()?;
        let dialect = Dialect::of(assets.generation);
        let plugins = dialect.plugins(&class.handler, dir.path(), assets.sandbox_api)?;
        let configuration = dir.path().join("configuration.toml");
        let variable = match assets.generation {
            _ if !assets.sandbox_api => None,
            ..2 => Some(sandbox_api_switch()?),
            // The runtime has no options then that could name it.
            2.. => Some(("KATA_CONF_FILE", configuration.as_path())),
        };
        let containerd = Containerd::for_pods(&assets, dir.path(), &plugins, variable.as_slice())?;
        let cri = Cri::connect(&containerd.socket())?;
        let world = PodWorld { cri, containerd, dir, assets, class, overhead, pods: AtomicUsize::new(0) };
        world.check_mode().and_then(|()| world.import()).map_err(|failure| world.with_log(0, &failure))?;
        Ok(world)
    }

    /// What CRI is told to make pods with, as the page's RuntimeClass says.
    pub fn handler(&self) -> &str {
        &self.class.handler
    }

    /// containerd's CRI.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Ends containerd and starts it again: pods live on.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_after(Signal::SIGTERM, || Ok(()))
    }

    /// The same by `signal`, with something done while none runs.
    pub fn restart_after(&mut self, signal: Signal, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        let done = self.containerd.restart_after(signal, meanwhile);
        self.cri = Cri::connect(&self.containerd.socket())?;
        done
    }

    /// What containerd and, through it, its shims have logged so far.
    pub fn log(&self) -> String {
        self.containerd.log()
    }

    /// containerd's process, whose network and mounts are the pods' host's.
    pub fn host(&self) -> u32 {
        self.containerd.pid()
    }

    /// Does something on a thread in the network of the pods' host.
    pub fn on_host_network<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        in_network_of(self.host(), act)
    }

    /// The process id of a pod's shim.
    pub fn shim_of(&self, pod: &str) -> Result<u32> {
        let processes = fs::read_dir("/proc")?.flatten();
        let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_shim = |id: &u32| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            words.next().is_some_and(|name| name.ends_with(SHIM.as_bytes()))
                && words.any(|word| word == pod.as_bytes())
        };
        ids.find(is_shim).context(format!("the shim of pod {pod}"))
    }

    /// containerd's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.containerd.socket()
    }

    /// The shim's program, for what people and storage drivers call it with.
    pub fn shim_command(&self) -> Command {
        Command::new(&self.assets.shim)
    }

    /// A directory of this world.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What `ctr` prints about pods; it has to end well.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        Ok(run(self.ctr_command().args(arguments), PATIENCE)?.exits(0)?.out())
    }

    fn ctr_command(&self) -> Command {
        let mut ctr = Command::new(&self.assets.ctr);
        ctr.arg("--address").arg(self.containerd.socket()).args(["--namespace", NAMESPACE]);
        ctr
    }

    /// A containerd 1 that does not know its Sandbox API's variable would make pause containers.
    fn check_mode(&self) -> Result<()> {
        if self.assets.sandbox_api
            && self.assets.generation < 2
            && !self.containerd.log().contains(SANDBOX_SERVER)
        {
            fail!("KATA_TEST_SANDBOX_API: containerd does not use its Sandbox API: is it 1.7?");
        }
        Ok(())
    }

    fn import(&self) -> Result<()> {
        run(self.ctr_command().args(["images", "import"]).arg(self.assets.image()), PATIENCE)?.exits(0)?;
        let pause = (!self.assets.sandbox_api).then_some(PAUSE);
        pause.into_iter().chain([IMAGE]).try_for_each(|image| self.expect_image(image))
    }

    /// Waits until CRI knows an image.
    fn expect_image(&self, image: &str) -> Result<()> {
        // It tells nobody when it has taken note of one.
        eventually(IMAGES, || {
            let log = self.containerd.log();
            check!(self.cri.has_image(image)?, "no image {image}; containerd's log: {}", tail(&log));
            Ok(())
        })
    }

    /// Has the test image by another name, too, which may be as short as in a pod's manifest.
    pub fn call_image(&self, name: &str) -> Result<()> {
        let full = format!("docker.io/library/{name}:latest");
        self.ctr(&["images", "tag", "--force", IMAGE, &full])?;
        self.expect_image(name)
    }

    /// A pod's configuration, of its own name.
    pub fn config(&self) -> PodSandboxConfig {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: format!("pod-{number}"),
                uid: format!("uid-{}-{number}", std::process::id()),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: format!("pod-{number}"),
            linux: Some(LinuxPodSandboxConfig {
                overhead: Some(self.overhead.clone()),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(NamespaceMode::Container)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Makes a pod, hands it to `body`, removes it and checks that nothing of it is left. Fails with what `body` said,
    /// what was left, and the end of containerd's log.
    pub fn pod(&self, config: PodSandboxConfig, body: impl FnOnce(&Pod<'_>) -> Result<()>) -> Result<()> {
        let from = self.containerd.log().len();
        let outcome = self.cri.run_pod(&config, self.handler()).and_then(|id| {
            let pod = Pod { world: self, id, config };
            let network = PodNetwork::of(self, &pod.id);
            let outcome = body(&pod);
            let removed = self.cri.stop_pod(&pod.id).and_then(|()| self.cri.remove_pod(&pod.id));
            outcome.and(removed).and_then(|()| left::expect_nothing(self, &pod.id, Some(&network?)))
        });
        outcome.map_err(|failure| self.with_log(from, &failure))
    }

    /// Looks for what is left of a pod that was removed.
    pub fn expect_nothing_of(&self, pod: &str) -> Result<()> {
        left::expect_nothing(self, pod, None)
    }

    /// A failure and the end of what containerd has said since.
    fn with_log(&self, from: usize, failure: &Failure) -> Failure {
        let log = self.containerd.log();
        let log = tail(log.get(from..).unwrap_or_default());
        Failure::new(format!("--- end of containerd's log\n{log}\n---\n{failure}"))
    }
}

/// A pod that runs.
pub struct Pod<'w> {
    /// Where it is.
    pub world: &'w PodWorld,
    /// Its sandbox's id.
    pub id: String,
    config: PodSandboxConfig,
}

impl Pod<'_> {
    /// One that runs already.
    pub fn of<'w>(world: &'w PodWorld, id: &str, config: &PodSandboxConfig) -> Pod<'w> {
        Pod { world, id: id.to_owned(), config: config.clone() }
    }

    /// A container's configuration, to be changed and created.
    pub fn container<'a>(&self, name: &str, command: impl IntoIterator<Item = &'a str>) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image_of(IMAGE)),
            command: command.into_iter().map(str::to_owned).collect(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces(NamespaceMode::Container)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Makes and starts a container; returns its id.
    pub fn run(&self, container: &ContainerConfig) -> Result<String> {
        let id = self.world.cri.create(&self.id, container, &self.config)?;
        self.world.cri.start(&id)?;
        Ok(id)
    }

    /// Ends and removes a container.
    pub fn end(&self, container: &str) -> Result<()> {
        self.world.cri.stop(container, 0)?;
        self.world.cri.remove(container)
    }

    /// What a shell in a container prints; it has to end well.
    pub fn sh(&self, container: &str, script: &str) -> Result<String> {
        let output = self.world.cri.exec(container, ["sh", "-c", script]).context(script)?;
        Ok(output.exits(0).context(script)?.out().trim_end().to_owned())
    }

    /// What there is of it on the host, which is to be gone with it.
    pub fn traces(&self) -> Result<Vec<String>> {
        left::all(self.world, &self.id, Some(&PodNetwork::of(self.world, &self.id)?))
    }

    /// The socket where operators' tools ask.
    pub fn door(&self) -> PathBuf {
        Path::new(DOORS).join(&self.id).join("shim-monitor.sock")
    }

    /// Its sandbox's bundle.
    pub fn bundle(&self) -> PathBuf {
        let assets = &self.world.assets;
        // containerd 2 keeps a sandbox that is no container apart from containers.
        let [tasks, sandboxes] = KEEPERS;
        let keeper = if assets.sandbox_api && assets.generation >= 2 { sandboxes } else { tasks };
        self.world.dir().join("state").join(keeper).join(NAMESPACE).join(&self.id)
    }
}

/// Does something on a thread in the network of a process.
pub(crate) fn in_network_of<T: Send + 'static>(
    process: u32,
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    Ok(in_network(File::open(format!("/proc/{process}/ns/net"))?, act))
}

fn in_network<T: Send + 'static>(
    namespace: File,
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> JoinHandle<Result<T>> {
    spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        act()
    })
}

/// The namespaces that kubelet asks for, with that one for processes.
pub fn namespaces(pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption { pid: pid.into(), ..Default::default() }
}
