//! A machine as a shim would boot it, with its agent and no shim before it.

use std::fs;
use std::future::Ready;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agent_client::agent::{CreateContainerRequest, CreateSandboxRequest, Storage};
use agent_client::{AGENT_PORT, AgentClient, Dialing, STREAM_CHUNK, StreamPorts, Timeouts, reach};
use agent_protocol::convert::{process_to_wire, spec_to_wire};
use oci_spec::runtime::Spec;
use serde_json::json;
use slog::{Discard, Logger, o};
use vmm::spec::{Boot, CpuFeatures, Memory, Share, ShareKind, Tag, VmName, VmUuid};
use vmm::{Hypervisor, Qemu, Vm, VmSpec, accelerator};

use crate::bundle::{process, spec};
use crate::case::{Case, PATIENCE};
use crate::command::run;
use crate::operator::Configuration;
use crate::{Context, Result, check_eq};

/// Where the guest has what the host shares.
const SHARED: &str = "/run/kata-containers/shared/containers/";

/// Where it has the directory `rootfs` of that.
pub const ROOTFS: &str = "/run/kata-containers/shared/containers/rootfs";

/// What the share is called.
const TAG: &str = "kataShared";

/// The name of the sandbox, and of the machine.
const NAME: &str = "bare";

/// The container that [`Machine::sh`] runs in.
const SHELL: &str = "shell";

/// A running machine whose agent answers.
pub struct Machine {
    /// The machine.
    pub vm: Box<dyn Vm>,
    /// Its agent, with a sandbox.
    pub agent: AgentClient,
    run_dir: PathBuf,
}

impl Machine {
    /// Boots a machine with `share`, as `edit` leaves its specification.
    pub async fn boot(case: &Case<'_>, share: PathBuf, edit: impl FnOnce(&mut VmSpec)) -> Result<Machine> {
        let run_dir = case.dir().join("machine");
        fs::create_dir_all(&run_dir)?;
        let mut spec = usual(case, &run_dir, share)?;
        edit(&mut spec);
        let vm = Qemu::new(Logger::root(Discard, o!())).boot(spec).await?;
        let agent = agent(vm.as_ref()).await.map_err(|error| {
            crate::Failure::new(format!("{error}; the console says: {}", vm.console_tail()))
        })?;
        Ok(Machine { vm, agent, run_dir })
    }

    /// A directory to share that has the test image's files, a copy, in `rootfs`.
    pub fn share(case: &Case<'_>) -> Result<PathBuf> {
        let share = case.dir().join("share");
        fs::create_dir_all(&share)?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(case.world.rootfs()).arg(&share);
        run(&mut copy, Duration::from_secs(30))?.exits(0)?;
        Ok(share)
    }

    /// Its run directory.
    pub fn dir(&self) -> &Path {
        &self.run_dir
    }

    /// Ends it.
    pub async fn end(self) -> Result<()> {
        Ok(self.vm.stop(Duration::ZERO).await?)
    }

    /// Starts a container that may do to the guest what root may, for [`Self::sh`]. Its root file system is that of
    /// [`Self::share`], which it cannot write to.
    pub async fn start_shell(&self, case: &Case<'_>) -> Result<()> {
        let request = CreateContainerRequest {
            container_id: SHELL.into(),
            oci: Some(spec_to_wire(&privileged(case)?)).into(),
            ..CreateContainerRequest::default()
        };
        self.agent.create_container(request).await?;
        Ok(self.agent.start_container(SHELL).await?)
    }

    /// All that the first process of a container writes, without the last line's end.
    pub async fn output_of(&self, id: &str) -> Result<String> {
        let all = to_the_end(|| self.agent.read_stdout(id, "", STREAM_CHUNK)).await?;
        Ok(all.trim_end().to_owned())
    }

    /// Runs a script in the shell's container. Returns what it writes, without the last line's end.
    ///
    /// Fails unless it ends with status 0.
    pub async fn sh(&self, case: &Case<'_>, script: &str) -> Result<String> {
        let exec = format!("exec-{}", case.next_exec());
        let spec = spec(case.world, &case.namespace, SHELL, &[]);
        let mut process: oci_spec::runtime::Process =
            serde_json::from_value(process(&spec, &["sh", "-ec", script]))?;
        process.set_capabilities(Some(serde_json::from_value(all_capabilities())?));
        let agent = &self.agent;
        agent.exec_process(SHELL, &exec, process_to_wire(&process), StreamPorts::default()).await?;
        let (stdout, stderr) = tokio::try_join!(
            to_the_end(|| agent.read_stdout(SHELL, &exec, STREAM_CHUNK)),
            to_the_end(|| agent.read_stderr(SHELL, &exec, STREAM_CHUNK)),
        )?;
        let status = agent.wait_process(SHELL, &exec).await?;
        check_eq!((status, stderr.as_str()), (0, ""), "{script:?} wrote {stdout:?}");
        Ok(stdout.trim_end().to_owned())
    }
}

async fn to_the_end<F>(read: impl Fn() -> F) -> Result<String>
where
    F: Future<Output = std::result::Result<Vec<u8>, agent_client::Error>>,
{
    let mut all = Vec::new();
    loop {
        match read().await? {
            some if some.is_empty() => return Ok(String::from_utf8_lossy(&all).into_owned()),
            some => all.extend(some),
        }
    }
}

async fn agent(vm: &dyn Vm) -> Result<AgentClient> {
    let vsock = vm.vsock();
    let dial = || {
        let vsock = vsock.clone();
        Box::pin(async move { Ok(vsock.connect(AGENT_PORT).await?.stream) }) as Dialing<'_, _>
    };
    let agent = reach(&dial, None::<Ready<()>>, Timeouts::default(), PATIENCE).await?;
    let storages = vec![Storage {
        driver: "9p".into(),
        source: TAG.into(),
        fstype: "9p".into(),
        options: ["trans=virtio", "version=9p2000.L", "cache=loose"].map(String::from).to_vec(),
        mount_point: SHARED.into(),
        ..Storage::default()
    }];
    let sandbox =
        CreateSandboxRequest { storages, sandbox_id: NAME.into(), ..CreateSandboxRequest::default() };
    agent.create_sandbox(sandbox).await?;
    Ok(agent)
}

fn privileged(case: &Case<'_>) -> Result<Spec> {
    let mut spec = spec(case.world, &case.namespace, SHELL, &["sleep", "1000000"]);
    spec["process"]["capabilities"] = all_capabilities();
    spec["root"] = json!({"path": ROOTFS, "readonly": true});
    spec["linux"] = json!({
        "namespaces": [{"type": "mount"}],
        "resources": {"devices": [{"allow": true, "access": "rwm"}]},
    });
    Ok(serde_json::from_value(spec)?)
}

fn all_capabilities() -> serde_json::Value {
    let all = json!(["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_SYS_MODULE"]);
    json!({"bounding": all, "effective": all, "permitted": all})
}

/// As a shim would boot it, but smaller.
fn usual(case: &Case<'_>, run_dir: &Path, share: PathBuf) -> Result<VmSpec> {
    let configuration = Configuration::shipped(case.world.assets())?;
    let path =
        |key: &str| configuration.text(&format!("hypervisor.qemu.{key}")).map(PathBuf::from).context(key);
    let (name, boot) = (VmName::new(NAME)?, Boot::Initrd(path("initrd")?));
    let plain =
        VmSpec::plain(name, VmUuid::random()?, run_dir.to_owned(), path("path")?, path("kernel")?, boot)?;
    Ok(VmSpec {
        accelerator: accelerator::detect(accelerator::Choice::Auto)?.accelerator,
        cpu_features: CpuFeatures::parse("pmu=off")?,
        memory: Memory::new(512, 4, 1024)?,
        share: Some(Share { source: share, tag: Tag::new(TAG)?, kind: ShareKind::Virtio9p }),
        ..plain
    })
}
