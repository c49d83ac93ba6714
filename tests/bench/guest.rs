//! The guest by itself: what its agent's calls cost, with no shim before it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use agent_client::AgentClient;
use agent_client::agent::CreateContainerRequest;
use agent_protocol::convert::spec_to_wire;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use oci_spec::runtime::Spec;
use serde_json::json;
use tests::bundle::spec;
use tests::case::PATIENCE;
use tests::machine::{Machine, ROOTFS};
use tests::{Case, Context, Result, check, check_eq};
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

/// What a piped connection's pipe holds: as much as a process' own.
const PIPE_SIZE: usize = 1 << 20;

/// What is between the connection and where its bytes come from or go to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Between {
    Nothing,
    /// A pipe, as every process has it for a stream.
    Pipe,
}

/// The argument of a connection with a pipe before it.
const PIPED: &str = "piped";

/// Connects to the host, sends so many bytes, and takes what comes until the host hangs up: `<port> <bytes> [piped]`.
pub(crate) fn peer(mut args: impl Iterator<Item = String>) -> Result<()> {
    let port: u32 = args.next().context("the port")?.parse()?;
    let length: usize = args.next().context("the length")?.parse()?;
    let stream = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(stream.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    let stream = File::from(stream);
    match args.next().as_deref() {
        Some(PIPED) if length > 0 => send_piped(stream, length),
        Some(PIPED) => take_piped(stream),
        _ => shuttle(stream, length),
    }
}

fn shuttle(mut stream: File, length: usize) -> Result<()> {
    send(&stream, length)?;
    let mut chunk = vec![0; CHUNK];
    while stream.read(&mut chunk)? > 0 {}
    Ok(())
}

fn send(mut to: impl Write, length: usize) -> Result<()> {
    let chunk = vec![0; CHUNK];
    for _ in 0..length / CHUNK {
        to.write_all(&chunk)?;
    }
    Ok(())
}

/// One thread writes and the other passes on, which costs less than two processes.
fn send_piped(mut stream: File, length: usize) -> Result<()> {
    let (from, to) = std::io::pipe()?;
    fcntl(&to, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE as i32))?;
    let sender = thread::spawn(move || send(to, length).is_ok());
    pass_on(from, &stream)?;
    check_eq!(sender.join().ok(), Some(true), "whether all was written");
    while stream.read(&mut [0])? > 0 {}
    Ok(())
}

fn take_piped(stream: File) -> Result<()> {
    let (mut from, to) = std::io::pipe()?;
    fcntl(&to, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE as i32))?;
    let taker = thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        while let Ok(1..) = from.read(&mut chunk) {}
    });
    pass_on(&stream, to)?;
    check!(taker.join().is_ok(), "the taker");
    // The connection ends with the last byte that was taken.
    drop(stream);
    Ok(())
}

fn pass_on(mut from: impl Read, mut to: impl Write) -> Result<()> {
    let mut all = vec![0; PIPE_SIZE];
    loop {
        match from.read(&mut all)? {
            0 => return Ok(()),
            some => to.write_all(&all[..some])?,
        }
    }
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
        let took = run(self.agent, self.case, &id, 0, Between::Nothing).await?;
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
pub(crate) async fn run(
    agent: &AgentClient,
    case: &Case<'_>,
    id: &str,
    length: usize,
    between: Between,
) -> Result<f64> {
    let spec = container(case, id, length, between)?;
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
fn container(case: &Case<'_>, id: &str, length: usize, between: Between) -> Result<Spec> {
    // The image has no dynamic loader, so it comes along and is called by name.
    let loader = ["/bench/loader", "--library-path", "/bench", "/bench/program", PEER];
    let (port, length) = (PORT.to_string(), length.to_string());
    let piped: &[&str] = if between == Between::Pipe { &[PIPED] } else { &[] };
    let args = [&loader, [port.as_str(), length.as_str()].as_slice(), piped].concat();
    let mut spec = spec(case.world, &case.namespace, id, &args);
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
