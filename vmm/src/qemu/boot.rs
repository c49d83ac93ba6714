//! From a specification to a running guest.
//!
//! ```text
//! paths looked at -> helpers up -> QEMU, processors halted -> QMP negotiated -> processors run
//! ```
//!
//! Whatever fails or ends on the way, everything that was started is killed and reaped before the error returns.

use std::fs::{self, File, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use slog::{Logger, debug, info, o};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::command::{self, ImageEnd, Inherited, ShareEnd, VsockEnd};
use super::dump::Facts;
use super::machine::{Machine, Parts};
use super::monitor::{Duties, Monitor};
use super::plug::Plugs;
use super::qmp::{Cont, Qmp};
use crate::console::Console;
use crate::error::{BootError, QmpError};
use crate::exit::{VmExit, Who};
use crate::huge_pages;
use crate::nydusd;
use crate::paths;
use crate::processes::{Processes, Program};
use crate::selinux::Labelled;
use crate::spec::{Accelerator, Boot, EXTRA_MONITOR, FsServer, Share, ShareKind, VmSpec, VsockSpec};
use crate::user::User;
use crate::virtiofsd;
use crate::vm::{Hypervisor, Vm};
use crate::vsock;

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
}

impl Qemu {
    /// Machines whose processes and consoles are logged to `log`.
    #[must_use]
    pub fn new(log: Logger) -> Qemu {
        Qemu { log }
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
        match run(&processes, &spec).await {
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

async fn run(processes: &Processes, spec: &VmSpec) -> Result<Parts, BootError> {
    let (share, share_socket) = share(processes, spec).await?;
    let vsock = vsock::start(spec.vsock, processes.log())?;
    if spec.vsock == VsockSpec::Vhost {
        processes.record_cid(vsock.cid)?;
    }
    let image = image(spec)?;
    let extra_monitor = spec.extra_monitor.map(|_| extra_monitor(processes)).transpose()?;
    let (monitor, qemu_monitor) = socketpair()?;
    let (console, qemu_console) = socketpair()?;
    let inherited = Inherited {
        qmp: qemu_monitor.as_raw_fd(),
        console: qemu_console.as_raw_fd(),
        extra_monitor: extra_monitor.as_ref().map(AsRawFd::as_raw_fd),
        image: image.as_ref().map(|(fd, size)| ImageEnd { fd: fd.as_raw_fd(), size: *size }),
        share,
        vsock: match spec.vsock {
            VsockSpec::Vhost => VsockEnd::Vhost { fd: vsock.fd.as_raw_fd(), cid: vsock.cid },
            VsockSpec::VhostUser => VsockEnd::VhostUser { fd: vsock.fd.as_raw_fd() },
        },
    };
    let args = command::render(spec, &inherited);
    let told = json!(args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>()).to_string();
    debug!(processes.log(), "qemu"; "path" => %spec.qemu.display(), "arguments" => ?args);
    let fds = [qemu_monitor, qemu_console, vsock.fd]
        .into_iter()
        .chain(image.map(|(fd, _)| fd))
        .chain(share_socket)
        .chain(extra_monitor)
        .collect();
    let user = processes.user();
    let qemu =
        processes.start(Program { who: Who::Qemu, path: &spec.qemu, args, fds, umask: 0o077, user })?;
    let console = Console::read(console, processes.log().new(o!("process" => "guest")));
    let monitor = unless_it_ends(processes.exit(), go(processes, spec, told, monitor)).await?;
    let plugs = Plugs::start(monitor.qmp().clone(), spec, processes.log().clone());
    Ok(Parts { qemu, monitor, plugs, console, vsock: vsock.host, _device: vsock.device })
}

/// Negotiates with QEMU, which was `told` these arguments, and starts the processors.
async fn go(
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
    // Listening begins before the guest can do anything worth hearing.
    let facts = Facts { version: version.to_string(), configuration: told };
    let dump = spec.panic_dump.clone().map(|dump| (dump, facts));
    let duties = Duties { first_exit: processes.exit_sender(), dump, log: log.clone() };
    let monitor = Monitor::watch(qmp, duties);
    monitor.qmp().execute(Cont {}).await?;
    info!(log, "the guest runs"; "qemu" => %version);
    Ok(monitor)
}

/// Carries out `boot`, unless a process ends first. QEMU's connection may go before its exit is known, which is the
/// better explanation.
async fn unless_it_ends<T>(
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

/// Makes the shared directory's back end: what QEMU is told of it, and the socket it inherits for it.
async fn share<'a>(
    processes: &Processes,
    spec: &'a VmSpec,
) -> Result<(Option<ShareEnd<'a>>, Option<OwnedFd>), BootError> {
    let Some(Share { source, tag, kind }) = &spec.share else { return Ok((None, None)) };
    Ok(match kind {
        ShareKind::Virtio9p => (Some(ShareEnd::Virtio9p { tag, source }), None),
        ShareKind::VirtioFs(fs) => {
            let socket = match fs.server {
                // It needs no waiting for: it comes up while QEMU does.
                FsServer::Virtiofsd(cache) => virtiofsd::start(processes, fs, cache, source)?,
                FsServer::Nydusd => {
                    unless_it_ends(processes.exit(), nydusd::start(processes, fs, source)).await?
                }
            };
            let end = ShareEnd::VirtioFs {
                tag,
                queue_size: fs.queue_size,
                dax_mib: fs.dax_mib,
                fd: socket.as_raw_fd(),
            };
            (Some(end), Some(socket))
        }
    })
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

/// Opens the guest image, for reading alone, and tells its size.
fn image(spec: &VmSpec) -> Result<Option<(OwnedFd, u64)>, BootError> {
    let Boot::Image { path, .. } = &spec.boot else { return Ok(None) };
    let refused = |source| BootError::Io { doing: format!("open {}", path.display()), source };
    let open = || {
        let image = File::open(path)?;
        let size = image.metadata()?.len();
        Ok((image.into(), size))
    };
    open().map(Some).map_err(refused)
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
