//! Pods by containerd's CRI, as kubelet makes them: a containerd in a network of its own, with a bridge for the pods.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::assets::Assets;
use crate::case::{IMAGE, PATIENCE};
use crate::command::{run, tail};
use crate::containerd::Containerd;
use crate::cri::{Cri, image_of};
use crate::leak::Suspects;
use crate::{Context, Failure, Result, check, eventually, fail, operator};

/// The handler of containerd's configuration that is this project's shim, as the RuntimeClass names it.
pub const HANDLER: &str = "kata";

/// Where operators' tools look for sandboxes.
const DOORS: &str = "/run/vc/sbs";

/// The image that a sandbox's own container is of.
const PAUSE: &str = "localhost/pause:latest";

/// What containerd 1.7 says when it makes pods by its Sandbox API.
const SANDBOX_SERVER: &str = "using experimental CRI Sandbox server";

/// containerd's namespace for pods.
const NAMESPACE: &str = "k8s.io";

/// How long CRI may take to see an image that was imported.
const IMAGES: Duration = Duration::from_secs(30);

/// The shim's program.
const SHIM: &str = "containerd-shim-kata-v2";

/// What pods may ask of their machine.
const ANNOTATIONS: [&str; 5] = [
    "kernel_params",
    "rx_rate_limiter_max_rate",
    "tx_rate_limiter_max_rate",
    "runtime.sandbox_cgroup_only",
    "runtime.enable_vcpus_pinning",
];

/// A containerd with CRI and the test images.
pub struct PodWorld {
    // Fields drop in this order: what is inside the directory goes before the directory.
    cri: Cri,
    containerd: Containerd,
    dir: TempDir,
    assets: Assets,
    pods: AtomicUsize,
}

impl PodWorld {
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
        let plugins = Dialect::of(assets.generation).plugins(dir.path(), assets.sandbox_api)?;
        let configuration = dir.path().join("configuration.toml");
        let variable = match assets.generation {
            _ if !assets.sandbox_api => None,
            ..2 => Some(sandbox_api_switch()?),
            // The runtime has no options then that could name it.
            2.. => Some(("KATA_CONF_FILE", configuration.as_path())),
        };
        let containerd = Containerd::for_pods(&assets, dir.path(), &plugins, variable.as_slice())?;
        let cri = Cri::connect(&containerd.socket())?;
        let world = PodWorld { cri, containerd, dir, assets, pods: AtomicUsize::new(0) };
        world.check_mode().and_then(|()| world.import()).map_err(|failure| world.with_log(0, &failure))?;
        Ok(world)
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
        for image in pause.into_iter().chain([IMAGE]) {
            // CRI tells nobody when it has taken note of an image.
            eventually(IMAGES, || {
                let log = self.containerd.log();
                check!(self.cri.has_image(image)?, "no image {image}; containerd's log: {}", tail(&log));
                Ok(())
            })?;
        }
        Ok(())
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
        let outcome = self.cri.run_pod(&config, HANDLER).and_then(|id| {
            let pod = Pod { world: self, id, config };
            let outcome = body(&pod);
            let removed = self.cri.stop_pod(&pod.id).and_then(|()| self.cri.remove_pod(&pod.id));
            outcome.and(removed).and_then(|()| self.expect_nothing_of(&pod.id))
        });
        outcome.map_err(|failure| self.with_log(from, &failure))
    }

    /// Looks for what is left of a pod that was removed.
    pub fn expect_nothing_of(&self, pod: &str) -> Result<()> {
        let suspects = Suspects {
            namespace: pod.to_owned(),
            address: self.containerd.socket(),
            ids: Vec::new(),
            cgroup_may_stay: false,
        };
        suspects.expect_nothing()?;
        for dir in [Path::new("/run/kata").join(NAMESPACE).join(pod), Path::new(DOORS).join(pod)] {
            if dir.exists() {
                fail!("left behind: {}", dir.display());
            }
        }
        Ok(())
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

    /// The socket where operators' tools ask.
    pub fn door(&self) -> PathBuf {
        Path::new(DOORS).join(&self.id).join("shim-monitor.sock")
    }

    /// Its sandbox's bundle.
    pub fn bundle(&self) -> PathBuf {
        let assets = &self.world.assets;
        // containerd 2 keeps a sandbox that is no container apart from containers.
        let keeper = match assets.generation {
            2.. if assets.sandbox_api => "io.containerd.sandbox.controller.v1.shim",
            _ => "io.containerd.runtime.v2.task",
        };
        self.world.dir().join("state").join(keeper).join(NAMESPACE).join(&self.id)
    }
}

/// Does something on a thread in the network of a process.
pub(crate) fn in_network_of<T: Send + 'static>(
    process: u32,
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let namespace = File::open(format!("/proc/{process}/ns/net"))?;
    Ok(spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        act()
    }))
}

/// The namespaces that kubelet asks for, with that one for processes.
pub fn namespaces(pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption { pid: pid.into(), ..Default::default() }
}

/// The operator's page about clusters.
const PAGE: &str = include_str!("../../docs/kubernetes.md");

/// A piece of the page that is in `language` and has `word` in it.
pub fn snippet(language: &str, word: &str) -> Result<&'static str> {
    let mut pieces = PAGE.split("```").skip(1).step_by(2).filter_map(|piece| piece.strip_prefix(language));
    pieces
        .find(|piece| piece.contains(word))
        .context(format_args!("docs/kubernetes.md: {word} in {language}"))
}

/// What CRI's configuration is called, by the generations of containerd.
struct Dialect {
    /// The plugin that makes pods.
    cri: &'static str,
    /// The key of the image that a sandbox's own container is of, in its table where that is another plugin's.
    pause: &'static str,
    /// Where the network's plugins are.
    network: &'static str,
    /// The key that says who makes sandboxes.
    sandboxer: &'static str,
    /// Whether the runtime has its options then. containerd 2.1 takes them for runc's, and makes no container.
    keeps_options: bool,
}

impl Dialect {
    fn of(generation: u32) -> Dialect {
        match generation {
            ..2 => Dialect {
                cri: "io.containerd.grpc.v1.cri",
                pause: "sandbox_image",
                network: "bin_dir = \"/usr/lib/cni\"",
                sandboxer: "sandbox_mode",
                keeps_options: true,
            },
            2.. => Dialect {
                cri: "io.containerd.cri.v1.runtime",
                pause: "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox",
                network: "bin_dirs = [\"/usr/lib/cni\"]",
                sandboxer: "sandboxer",
                keeps_options: false,
            },
        }
    }

    /// The runtime's table as the page has it, with what it adds for the Sandbox API.
    fn runtime(&self, sandbox_api: bool) -> Result<String> {
        let table = format!("[plugins.\"{}\".containerd.runtimes.{HANDLER}]", self.cri);
        let runtime = snippet("toml", &format!("{table}\n  runtime_type"))?;
        if !sandbox_api {
            return Ok(runtime.to_owned());
        }
        let added = snippet("toml", &format!("{table}\n  {}", self.sandboxer))?;
        let options = runtime.find("  [plugins").filter(|_| !self.keeps_options);
        let runtime = &runtime[..options.unwrap_or(runtime.len())];
        Ok(runtime.replacen(&table, added.trim(), 1))
    }

    /// CRI's configuration as the page has it, for a world of its own.
    fn plugins(&self, dir: &Path, sandbox_api: bool) -> Result<String> {
        let file = dir.join("configuration.toml");
        // Where nobody needs the image, none is to be had.
        let image = if sandbox_api { "localhost/none:latest" } else { PAUSE };
        let runtime = self.runtime(sandbox_api)?;
        let runtime = runtime.replace("/etc/kata-containers/configuration.toml", &file.to_string_lossy());
        let Dialect { cri, pause, network, .. } = self;
        let dir = dir.display();
        Ok(format!(
            "[plugins.\"{cri}\"]\n\
             netns_mounts_under_state_dir = true\n\
             {pause} = \"{image}\"\n\
             [plugins.\"{cri}\".cni]\n\
             {network}\n\
             conf_dir = \"{dir}/cni\"\n\
             [plugins.\"{cri}\".containerd]\n\
             default_runtime_name = \"{HANDLER}\"\n\
             {runtime}"
        ))
    }
}

/// The variable in containerd's environment that the page tells of, and its value.
fn sandbox_api_switch() -> Result<(&'static str, &'static Path)> {
    let line =
        snippet("ini", "ENABLE_CRI_SANDBOXES")?.lines().find_map(|line| line.strip_prefix("Environment="));
    let variable = line.and_then(|line| line.trim_matches('"').split_once('='));
    variable.map(|(name, value)| (name, Path::new(value))).context("docs/kubernetes.md: the variable")
}

/// A bridge on the pods' host, and addresses of both families.
fn network(dir: &Path) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "kt0", "isGateway": true, "isDefaultGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": dir.join("addresses"),
                "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]]
            }
        }]
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use toml::Table;

    use super::*;

    #[test]
    fn what_the_page_says_fits_together() {
        let class = snippet("yaml", "RuntimeClass").unwrap();
        assert!(class.contains(&format!("handler: {HANDLER}\n")) && class.contains("podFixed"));
        assert!(snippet("yaml", "kind: Pod").unwrap().contains(&format!("runtimeClassName: {HANDLER}\n")));
        let crio: Table = snippet("toml", "crio.runtime").unwrap().parse().unwrap();
        let runtime = &crio["crio"]["runtime"]["runtimes"][HANDLER];
        assert_eq!(runtime["runtime_type"].as_str(), Some("vm"));
        assert!(runtime["runtime_path"].as_str().unwrap().ends_with("/containerd-shim-kata-v2"));
    }

    #[test]
    fn the_page_has_the_runtime_of_each_generation_of_containerd() {
        for dialect in [1, 2].map(Dialect::of) {
            for sandbox_api in [false, true] {
                let all: Table = dialect.plugins(Path::new("/w"), sandbox_api).unwrap().parse().unwrap();
                let runtime = &all["plugins"][dialect.cri]["containerd"]["runtimes"][HANDLER];
                assert_eq!(runtime["runtime_type"].as_str(), Some("io.containerd.kata.v2"));
                assert_eq!(runtime.get(dialect.sandboxer).is_some(), sandbox_api);
                let options = runtime.get("options").map(|options| options["ConfigPath"].as_str());
                let wanted = Some(Some("/w/configuration.toml"));
                assert_eq!(options, wanted.filter(|_| dialect.keeps_options || !sandbox_api));
            }
        }
    }
}
