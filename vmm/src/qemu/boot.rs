//! From a specification to a running guest.
//!
//! ```text
//! paths looked at -> helpers up -> QEMU, processors halted -> QMP negotiated -> processors run
//! ```
//!
//! Whatever fails or ends on the way, everything that was started is killed and reaped before the error returns.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use slog::{Logger, debug, info, o};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::command::{self, ImageEnd, Inherited, NicEnd};
use super::connections::Connections;
use super::dump::Facts;
use super::machine::{Machine, Parts};
use super::monitor::{Duties, Monitor};
use super::plug::Plugs;
use super::qmp::{Cont, Qmp};
use super::state;
use super::timer::TimerWatch;
use crate::console::Console;
use crate::error::{BootError, QmpError};
use crate::exit::{VmExit, Who};
use crate::huge_pages;
use crate::memory_file::{Filling, MemoryFile};
use crate::paths;
use crate::plug::Nic;
use crate::processes::{Processes, Program};
use crate::selinux::Labelled;
use crate::spec::{Accelerator, Boot, EXTRA_MONITOR, Machine as Board, Origin, VmSpec};
use crate::ticks::{self, Counter};
use crate::user::User;
use crate::vm::{Hypervisor, Vm};

/// How long QEMU may take for a command. Under TCG and load seconds are not unusual.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an exit may take to be known after the connection it ended.
const EXIT_FOLLOWS: Duration = Duration::from_secs(1);
/// The oldest QEMU whose options are the ones used here.
const OLDEST: (u32, u32) = (7, 2);

/// QEMU, as a child of this process.
#[derive(Debug, Clone)]
pub struct Qemu {
    log: Logger,
    counter: Counter,
}

impl Qemu {
    /// Machines whose processes and consoles are logged to `log`. The clock that emulated ones are given
    /// is first looked at now, as its rate is needed at their boot.
    #[must_use]
    pub fn new(log: Logger) -> Qemu {
        Qemu { log, counter: Counter::look() }
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    async fn boot(&self, spec: VmSpec) -> Result<Box<dyn Vm>, BootError> {
        spec.check()?;
        paths::check(&spec)?;
        huge_pages::check(&spec.memory, &spec.backing)?;
        let label = spec.selinux.as_ref().map(Labelled::new).transpose()?;
        let processes = Processes::new(&spec, user(&spec)?, label, self.log.clone())?;
        match run(&processes, &spec, self.counter).await {
            Ok(parts) => Ok(Box::new(Machine::new(processes, parts))),
            Err(error) => {
                // The boot's own error is the one worth telling.
                let _ = processes.kill().await;
                Err(error)
            }
        }
    }
}

/// Who QEMU is to be, where it is not to be who we are, once it is known that the user may open what it has to.
fn user(spec: &VmSpec) -> Result<Option<User>, BootError> {
    if !spec.rootless {
        return Ok(None);
    }
    let refused = |source| BootError::Io { doing: "find a user for the machine".to_owned(), source };
    let user = User::take(spec.accelerator == Accelerator::Kvm).map_err(refused)?;
    paths::check_for(user.credentials(), spec)?;
    Ok(Some(user))
}

async fn run(processes: &Processes, spec: &VmSpec, counter: Counter) -> Result<Parts, BootError> {
    let Connections { share, vsock, fds, late, host, device } = Connections::make(processes, spec).await?;
    let memory = MemoryFile::of(spec)?;
    let image = image(spec)?;
    let extensions = spec.extensions.iter().map(|extension| open(&extension.path));
    let extensions = extensions.collect::<Result<Vec<OwnedFd>, _>>()?;
    let nics = spec.nics.iter().map(|nic| nic.try_clone()).collect::<io::Result<Vec<Nic>>>();
    let nics = nics.map_err(|source| BootError::Io { doing: "hand taps over to QEMU".to_owned(), source })?;
    let extra_monitor = spec.extra_monitor.map(|_| extra_monitor(processes)).transpose()?;
    let (monitor, qemu_monitor) = socketpair()?;
    let (console, qemu_console) = socketpair()?;
    let inherited = Inherited {
        qmp: qemu_monitor.as_raw_fd(),
        console: qemu_console.as_raw_fd(),
        extra_monitor: extra_monitor.as_ref().map(AsRawFd::as_raw_fd),
        image: image.as_ref().map(|(fd, size)| ImageEnd { fd: fd.as_raw_fd(), size: *size }),
        extensions: extensions.iter().map(AsRawFd::as_raw_fd).collect(),
        share,
        vsock,
        nics: nics.iter().map(nic_end).collect(),
        memory: memory.as_ref().map(|memory| memory.fd.as_raw_fd()),
        ticks_per_ms: ticks_per_ms(spec, counter).await,
    };
    let args = command::render(spec, &inherited);
    let told = json!(args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>()).to_string();
    debug!(processes.log(), "qemu"; "path" => %spec.qemu.display(), "arguments" => ?args);
    let (memory, filling) = memory.map(|memory| (memory.fd, memory.filling)).unzip();
    let fds = [qemu_monitor, qemu_console]
        .into_iter()
        .chain(fds)
        .chain(image.map(|(fd, _)| fd))
        .chain(extensions)
        .chain(extra_monitor)
        .chain(memory)
        .chain(nics.into_iter().flat_map(|nic| nic.queues.into_iter().chain(nic.vhost)))
        .collect();
    let user = processes.user();
    let (path, network) = (&spec.qemu, spec.network.clone());
    let qemu = processes.start(Program { who: Who::Qemu, path, args, fds, umask: 0o077, user, network })?;
    let console = Console::read(console, spec.debug, processes.log().new(o!("process" => "guest")));
    let started = async {
        let monitor = negotiate(processes, spec, told, monitor).await?;
        first_state(monitor.qmp(), spec, filling).await?;
        if let Some(late) = late {
            late.plug(monitor.qmp(), spec.virtio).await?;
        }
        monitor.qmp().execute(Cont {}).await?;
        Ok(monitor)
    };
    let monitor = unless_it_ends(processes.exit(), started).await?;
    info!(processes.log(), "the guest runs");
    let plugs = Plugs::start(monitor.qmp().clone(), spec, processes.log().clone());
    let timer = has_one_timer(spec)
        .then(|| TimerWatch::start(monitor.qmp().clone(), qemu.clone(), processes.log().clone()));
    Ok(Parts {
        qemu,
        monitor,
        plugs,
        console,
        vsock: host,
        vsock_kind: spec.vsock,
        _device: device,
        _timer: timer,
    })
}

/// Negotiates with QEMU, which was `told` these arguments, and begins to listen to it.
async fn negotiate(
    processes: &Processes,
    spec: &VmSpec,
    told: String,
    monitor: UnixStream,
) -> Result<Monitor, BootError> {
    let log = processes.log();
    let (qmp, version) = Qmp::negotiate(monitor, PATIENCE, log.clone()).await?;
    if (version.major, version.minor) < OLDEST {
        return Err(BootError::TooOld { path: spec.qemu.clone(), found: version.to_string() });
    }
    info!(log, "qemu answers"; "version" => %version);
    // Before the guest can do anything worth hearing.
    let run_dir = spec.run_dir.clone();
    let facts = Facts { version: version.to_string(), configuration: told, run_dir };
    let dump = spec.panic_dump.clone().map(|dump| (dump, facts));
    let duties = Duties { first_exit: processes.exit_sender(), dump, log: log.clone() };
    Ok(Monitor::watch(qmp, duties))
}

/// Gives a copy the state of its template.
async fn first_state(qmp: &Qmp, spec: &VmSpec, memory: Option<Filling>) -> Result<(), BootError> {
    if let Some(memory) = memory {
        memory.done().await?;
    }
    let Origin::Copy { state: path, .. } = &spec.origin else { return Ok(()) };
    let file = File::from(open(path)?);
    Ok(state::load(qmp, file).await?)
}

/// Carries out `boot`, unless a process ends first. QEMU's connection may go before its exit is known, which is the
/// better explanation.
pub(super) async fn unless_it_ends<T>(
    mut exit: watch::Receiver<Option<VmExit>>,
    boot: impl Future<Output = Result<T, BootError>>,
) -> Result<T, BootError> {
    let mut ended = exit.clone();
    let result = tokio::select! {
        exit = ended.wait_for(Option::is_some) => return Err(BootError::ended(exit.ok().and_then(|exit| exit.clone()))),
        result = boot => result,
    };
    if !matches!(result, Err(BootError::Qmp(QmpError::Gone { .. }))) {
        return result;
    }
    match timeout(EXIT_FOLLOWS, exit.wait_for(Option::is_some)).await {
        Ok(exit) => Err(BootError::ended(exit.ok().and_then(|exit| exit.clone()))),
        Err(_) => result,
    }
}

/// Listens for the second monitor's callers. QEMU makes no file in the run directory, where it need not be allowed to.
fn extra_monitor(processes: &Processes) -> Result<OwnedFd, BootError> {
    let path = processes.claim(EXTRA_MONITOR);
    let short = processes.run_dir().short(EXTRA_MONITOR);
    let listen = || {
        let listener = UnixListener::bind(&short)?;
        fs::set_permissions(&short, Permissions::from_mode(0o600))?;
        Ok(listener.into())
    };
    listen().map_err(|source| BootError::Io { doing: format!("listen on {}", path.display()), source })
}

/// KVM has a clock of its own.
async fn ticks_per_ms(spec: &VmSpec, counter: Counter) -> Option<u64> {
    match spec.machine {
        _ if spec.accelerator != Accelerator::Tcg => None,
        Board::Q35(_) => counter.per_ms(ticks::ROUGHLY).await,
        Board::Microvm(_) => counter.per_ms(ticks::WELL).await,
        Board::Virt(_) => None,
    }
}

/// With ACPI the board without PCI has no other.
fn has_one_timer(spec: &VmSpec) -> bool {
    matches!(spec.machine, Board::Microvm(_)) && spec.accelerator == Accelerator::Tcg
}

fn nic_end(nic: &Nic) -> NicEnd {
    let numbers = |fds: &[OwnedFd]| fds.iter().map(AsRawFd::as_raw_fd).collect();
    NicEnd { queues: numbers(&nic.queues), vhost: numbers(&nic.vhost), mac: nic.mac }
}

/// Opens the guest image, for reading alone, and tells its size.
fn image(spec: &VmSpec) -> Result<Option<(OwnedFd, u64)>, BootError> {
    let Boot::Image { path, .. } = &spec.boot else { return Ok(None) };
    let image = File::from(open(path)?);
    let refused = |source| BootError::Io { doing: format!("look at {}", path.display()), source };
    let size = image.metadata().map_err(refused)?.len();
    Ok(Some((image.into(), size)))
}

/// Opens a file for reading alone.
fn open(path: &Path) -> Result<OwnedFd, BootError> {
    let refused = |source| BootError::Io { doing: format!("open {}", path.display()), source };
    File::open(path).map(OwnedFd::from).map_err(refused)
}

/// A connected pair: our end, and one to inherit.
fn socketpair() -> Result<(UnixStream, OwnedFd), BootError> {
    let pair = || {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs.into()))
    };
    pair().map_err(|source| BootError::Io { doing: "make a pair of sockets".to_owned(), source })
}
