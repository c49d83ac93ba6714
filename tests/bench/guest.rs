//! The guest by itself: what its agent's calls cost, with no shim before it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_client::AgentClient;
use agent_client::agent::CreateContainerRequest;
use agent_protocol::convert::spec_to_wire;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use oci_spec::runtime::Spec;
use serde_json::json;
use tests::bundle::spec;
use tests::case::PATIENCE;
use tests::machine::{Machine, ROOTFS};
use tests::{Case, Context, Result};
use vmm::spec::{EXTRA_MONITOR, ExtraMonitor};
use vmm::{Listener, VmSpec};

use crate::report::{Report, median};
use crate::translation::Translator;

/// The argument that makes this program the guest's end of a connection.
pub(crate) const PEER: &str = "vsock-peer";

/// A port nobody else uses: the agent has 1024, its notice of being ready 1025.
pub(crate) const PORT: u32 = 5001;

/// The longest packet there is.
pub(crate) const CHUNK: usize = 64 << 10;

/// How many containers are made one after the other.
const ROUNDS: usize = 10;

/// The container's name, and the machine's.
const ID: &str = "bare";

/// The host's context id.
const HOST: u32 = 2;

/// Connects to the host, sends so many bytes, and takes what comes until the host hangs up: `<port> <bytes>`.
pub(crate) fn peer(mut args: impl Iterator<Item = String>) -> Result<()> {
    let port: u32 = args.next().context("the port")?.parse()?;
    let length: usize = args.next().context("the length")?.parse()?;
    let stream = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(stream.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    shuttle(&mut File::from(stream), length)
}

fn shuttle(stream: &mut File, length: usize) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    for _ in 0..length / CHUNK {
        stream.write_all(&chunk)?;
    }
    while stream.read(&mut chunk)? > 0 {}
    Ok(())
}

/// What a guest does with no shim before it.
pub(crate) fn measure(case: &Case<'_>, report: &mut Report) -> Result<()> {
    let share = case.dir().join("share");
    rootfs(&share.join("rootfs"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let extra_monitor = |spec: &mut VmSpec| spec.extra_monitor = Some(ExtraMonitor::Qmp);
        let machine = Machine::boot(case, share, extra_monitor).await?;
        let translator = Translator::of(&machine.dir().join(EXTRA_MONITOR))?;
        let measured = tokio::time::timeout(PATIENCE, guest(&machine, translator, case, report)).await;
        machine.end().await?;
        measured?
    })
}

/// What the guest's agent and its vsock do.
async fn guest(
    machine: &Machine,
    translator: Option<Translator>,
    case: &Case<'_>,
    report: &mut Report,
) -> Result<()> {
    let connections = machine.vm.vsock().listen(PORT).context("the device")?;
    let mut guest = Guest { agent: &machine.agent, connections, translator, case, made: 0 };
    let first = guest.container().await?;
    let further = guest.containers(false).await?;
    report.heading("A guest without a shim");
    report.add("guest_first_container_ms", first.0, "CreateContainer and StartContainer by the agent");
    report.add("guest_further_container_ms", further.0, "the same again in the same guest");
    if guest.translator.is_some() {
        // All caches of the guest are warm by now, so this is what translation costs.
        let forgotten = guest.containers(true).await?;
        report.add("guest_forgotten_container_ms", forgotten.0, "the same again, translations forgotten");
        report.add("guest_first_container_blocks", first.1, "blocks of code translated for the first");
        report.add("guest_further_container_blocks", further.1, "for the further ones");
        report.add("guest_forgotten_container_blocks", forgotten.1, "for those after forgetting");
        let each = (forgotten.0 - further.0) * 1e3 / (forgotten.1 - further.1);
        report.add("translation_us_per_block", each, "by what these two differ");
    }
    Ok(())
}

/// A machine with its agent, in which containers connect back.
struct Guest<'a> {
    agent: &'a AgentClient,
    connections: Listener,
    /// Where the processor is emulated.
    translator: Option<Translator>,
    case: &'a Case<'a>,
    made: usize,
}

impl Guest<'_> {
    /// The milliseconds that CreateContainer and StartContainer take, and the blocks of code that are translated
    /// meanwhile. The container is gone afterwards.
    async fn container(&mut self) -> Result<(f64, f64)> {
        self.made += 1;
        let id = format!("{ID}-{}", self.made);
        let before = self.blocks()?;
        let took = run(self.agent, self.case, &id, 0).await?;
        let blocks = self.blocks()? - before;
        drop(self.connections.recv().await.context("the guest's connection")?);
        self.agent.remove_container(&id, Duration::ZERO).await?;
        Ok((took, blocks))
    }

    /// The medians of some, before each of which QEMU forgets its translations if it is to.
    async fn containers(&mut self, forgetful: bool) -> Result<(f64, f64)> {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            if forgetful {
                self.forget().await?;
            }
            rounds.push(self.container().await?);
        }
        let (times, blocks) = rounds.into_iter().unzip();
        Ok((median(times), median(blocks)))
    }

    fn blocks(&mut self) -> Result<f64> {
        self.translator.as_mut().map_or(Ok(0.0), Translator::blocks)
    }

    /// On a thread of its own, because this one serves the vsock device.
    async fn forget(&mut self) -> Result<()> {
        let mut translator = self.translator.take().context("a translator")?;
        let socket = self.case.dir().join("debugger.sock");
        let forgot = tokio::task::spawn_blocking(move || translator.forget(&socket).map(|()| translator));
        self.translator = Some(forgot.await??);
        Ok(())
    }
}

/// Runs a container that sends `length` bytes; the milliseconds until it is started.
pub(crate) async fn run(agent: &AgentClient, case: &Case<'_>, id: &str, length: usize) -> Result<f64> {
    let spec = container(case, id, length)?;
    let request = CreateContainerRequest {
        container_id: id.into(),
        oci: Some(spec_to_wire(&spec)).into(),
        ..CreateContainerRequest::default()
    };
    let began = Instant::now();
    agent.create_container(request).await?;
    agent.start_container(id).await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// A container that runs this program, as the guest is told of it.
fn container(case: &Case<'_>, id: &str, length: usize) -> Result<Spec> {
    let args = peer_args(PORT, length);
    let mut spec = spec(case.world, &case.namespace, id, &args.each_ref().map(String::as_str));
    spec["root"]["path"] = json!(ROOTFS);
    // The guest's network is nobody's but the container's.
    spec["linux"]["namespaces"] =
        json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]);
    Ok(serde_json::from_value(spec)?)
}

/// Megabytes (10^6) per second.
pub(crate) fn rate(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / 1e6 / took.as_secs_f64()
}

fn peer_args(port: u32, length: usize) -> [String; 7] {
    // The image has no dynamic loader, so it comes along and is called by name.
    let loader = ["/bench/loader", "--library-path", "/bench", "/bench/program", PEER].map(str::to_owned);
    let [a, b, c, d, e] = loader;
    [a, b, c, d, e, port.to_string(), length.to_string()]
}

/// A root file system with this program, the loader and the libraries it runs with.
pub(crate) fn rootfs(root: &Path) -> Result<()> {
    let into = root.join("bench");
    for dir in ["bench", "proc", "sys", "dev", "run"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(std::env::current_exe()?, into.join("program"))?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let files = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(Path::new);
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("ld-linux") {
            fs::copy(file, into.join("loader"))?;
        } else if name.contains(".so") {
            fs::copy(file, into.join(name))?;
        }
    }
    Ok(())
}
