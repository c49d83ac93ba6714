//! The shim itself: one process a sandbox, serving containerd's calls until `Shutdown`.

mod connections;
mod unused;

use std::{
    os::fd::{FromRawFd, OwnedFd, RawFd},
    path::Path,
    sync::Arc,
};

use containerd_shim::{ExitSignal, Flags};
use containerd_shim_protos::{
    sandbox_async::{Sandbox, create_sandbox},
    shim_async::{Task, create_task},
    ttrpc::r#async::{Server, Service},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use slog::{Logger, info, warn};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};
use vmm::Qemu;

use crate::{
    error::{Error, Result},
    events::Events,
    factory::Ready,
    logging::{self, Verbosity},
    management,
    sandbox_api::SandboxService,
    service::TaskService,
};

pub(crate) use connections::Connections;

/// The environment variable with the address containerd takes events at.
pub(crate) const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";
/// The descriptor the `start` action leaves the listening socket at.
pub(crate) const LISTENER_FD: RawFd = 3;
/// File operations are few; more threads would only cost memory.
const BLOCKING_THREADS: usize = 4;

/// Serves until containerd asks for the end. The working directory is the sandbox's bundle.
///
/// # Errors
/// When the socket, the log or the mount namespace cannot be had.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let listener = inherited_listener()?;
    let bundle = std::env::current_dir().map_err(Error::io("working directory"))?;
    let verbosity = Verbosity::new(flags.debug);
    let log = logging::open(&bundle, verbosity.clone(), &flags.id)?;
    log_panics(log.clone());
    let outcome = serve_on(listener, flags, &log, verbosity);
    if let Err(error) = &outcome {
        slog::crit!(log, "{error}");
    }
    outcome
}

/// Nobody reads the standard error of a shim.
pub(crate) fn log_panics(log: Logger) {
    std::panic::set_hook(Box::new(move |panic| slog::crit!(log, "panic"; "what" => panic.to_string())));
}

fn serve_on(
    listener: std::os::unix::net::UnixListener,
    flags: &Flags,
    log: &Logger,
    verbosity: Verbosity,
) -> Result<()> {
    private_mounts()?;
    let events = std::env::var(TTRPC_ADDRESS).map_err(|_| {
        Error::InvalidArgument(format!("{TTRPC_ADDRESS} is not set, so no event could be published"))
    })?;
    let shim = Shim { namespace: flags.namespace.clone(), events };
    block_on(serve(listener, &shim, None, log, verbosity))
}

/// Runs all that a shim does.
///
/// # Errors
/// Its own.
pub(crate) fn block_on(shim: impl Future<Output = Result<()>>) -> Result<()> {
    // One thread: the parent-death signal of QEMU and its helpers follows the thread that spawned them, and a
    // thread less is memory saved in every pod.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(Error::io("asynchronous runtime"))?;
    let outcome = runtime.block_on(shim);
    // A file operation that hangs must not keep the shim alive.
    runtime.shutdown_background();
    outcome
}

/// The mounts this shim makes are its own: the kernel takes them away with it, however it ends.
pub(crate) fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::os("private mount namespace"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(Error::os("mount propagation from the host only"))
}

fn inherited_listener() -> Result<std::os::unix::net::UnixListener> {
    let missing = || {
        Error::InvalidArgument(
            "descriptor 3 is not a listening socket: the shim is started by its own start action; -help says how".into(),
        )
    };
    let kind = nix::sys::stat::fstat(
        // SAFETY: only looked at; a closed descriptor gives EBADF.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(LISTENER_FD) },
    )
    .map_err(|_| missing())?;
    if kind.st_mode & nix::libc::S_IFMT != nix::libc::S_IFSOCK {
        return Err(missing());
    }
    // SAFETY: the start action put the socket there for this process alone, and nothing else here uses it.
    let socket = unsafe { OwnedFd::from_raw_fd(LISTENER_FD) };
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
        .map_err(Error::os("listening socket"))?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true).map_err(Error::io("listening socket"))?;
    Ok(listener)
}

/// What containerd says of a shim besides its socket and its bundle.
pub(crate) struct Shim {
    pub(crate) namespace: String,
    /// Where containerd takes events.
    pub(crate) events: String,
}

/// Is the shim that listens there, whose sandbox may find its machine ready.
///
/// # Errors
/// When the socket or the signals cannot be had.
pub(crate) async fn serve(
    listener: std::os::unix::net::UnixListener,
    shim: &Shim,
    ready: Option<Ready>,
    log: &Logger,
    verbosity: Verbosity,
) -> Result<()> {
    let socket = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_path_buf));
    let listener = UnixListener::from_std(listener).map_err(Error::io("listening socket"))?;
    let exit = Arc::new(ExitSignal::default());
    let (events, delivery) = Events::to(&shim.events, &shim.namespace, log.clone());
    let service = Arc::new(TaskService::new(
        &shim.namespace,
        Arc::new(Qemu::new(log.clone())),
        ready,
        events,
        exit.clone(),
        log.clone(),
        verbosity,
    ));
    let connections = Connections::default();
    let sandboxes: Arc<dyn Sandbox + Send + Sync> =
        Arc::new(SandboxService::new(service.clone(), connections.clone(), log.clone()));
    let mut server = Server::new()
        .add_listener(connections.of(listener))
        .register_service(management::timed(task_services(&service), service.durations()))
        .register_service(create_sandbox(sandboxes));
    server.start().await.map_err(|error| Error::Failed(format!("ttrpc server: {error}")))?;
    info!(log, "serving"; "version" => env!("CARGO_PKG_VERSION"), "pid" => std::process::id());
    ended(&exit, &service, &connections, log).await?;
    service.stop().await;
    if let Some(socket) = socket {
        // Gone first, so that a new shim with this id finds its place free.
        let _ = std::fs::remove_file(socket);
    }
    let _ = server.shutdown().await;
    drop((server, service));
    delivery.finish().await;
    info!(log, "ended");
    Ok(())
}

/// `Shutdown`, or a signal that asks for an orderly end, or nobody being there who would.
async fn ended(
    exit: &ExitSignal,
    service: &TaskService,
    connections: &Connections,
    log: &Logger,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::io("SIGINT"))?;
    tokio::select! {
        () = exit.wait() => {}
        _ = terminate.recv() => warn!(log, "SIGTERM: stopping the sandbox"),
        _ = interrupt.recv() => warn!(log, "SIGINT: stopping the sandbox"),
        why = unused::unused(service, connections) => {
            warn!(log, "the shim has no sandbox and is not asked for one: it ends"; "why" => why);
            // Whoever asks now is told so.
            service.end();
        }
    }
    Ok(())
}

/// The task service under both names it has had: containerd 1.x calls v2, containerd 2.3 may call v3. The messages
/// are the same.
fn task_services(service: &Arc<TaskService>) -> std::collections::HashMap<String, Service> {
    let v3 = || create_task(service.clone() as Arc<dyn Task + Send + Sync>);
    let v2 = v3().into_iter().map(|(name, methods)| (name.replace(".v3.", ".v2."), methods));
    v2.chain(v3()).collect()
}
