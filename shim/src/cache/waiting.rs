//! A shim that has its machine before it knows its sandbox.

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream as Conversation},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use configuration::Configuration;
use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::stat::Mode,
};
use slog::{Logger, info, warn};
use tokio::{io::Interest, net::UnixStream};
use vmm::Qemu;

use super::{
    KEEPER_FD,
    order::{self, Order},
    title,
};
use crate::{
    error::{Error, Result},
    factory::Ready,
    logging::{self, Outlet, Verbosity},
    sandbox::{host_cgroup, run_dir},
    serve,
};

/// How long whoever asked for a shim may take to say for what.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes a machine as that configuration says, waits to be taken, and is the shim that it is taken for. Ends when its
/// keeper does before that.
///
/// # Errors
/// Why there is no machine, or not any more; what [`serve::serve`] ends with.
pub(crate) fn wait(file: Option<&Path>) -> Result<()> {
    let keeper = keeper()?;
    let outlet = Outlet::standard_error("waiting")?;
    let verbosity = Verbosity::default();
    let log = logging::to(outlet.clone(), verbosity.clone());
    serve::log_panics(log.clone());
    serve::private_mounts()?;
    // Its file may get another name while this waits.
    let program = std::env::current_exe().map_err(Error::io("this program's own path"))?;
    let waiting = Waiting { program, outlet, verbosity, log };
    serve::block_on(async {
        let keeper = UnixStream::from_std(keeper).map_err(Error::io("the keeper"))?;
        waiting.run(keeper, file).await
    })
}

fn keeper() -> Result<std::os::unix::net::UnixStream> {
    // SAFETY: the keeper put it there for this process alone; if it did not, the next call says so.
    let fd = unsafe { OwnedFd::from_raw_fd(KEEPER_FD) };
    let usable = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    usable.map_err(|_| {
        Error::InvalidArgument("descriptor 3 is no keeper: `factory init` starts shims that wait".to_owned())
    })?;
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true).map_err(Error::io("the keeper"))?;
    Ok(stream)
}

struct Waiting {
    program: PathBuf,
    outlet: Outlet,
    verbosity: Verbosity,
    log: Logger,
}

impl Waiting {
    async fn run(&self, keeper: UnixStream, file: Option<&Path>) -> Result<()> {
        let loaded = Configuration::load(file, &std::collections::HashMap::new());
        let configuration = loaded.map_err(|error| Error::InvalidArgument(error.to_string()))?.configuration;
        let hypervisor = Qemu::new(self.log.clone());
        let run_dir = run_dir::ready().join(std::process::id().to_string());
        let mut ready = tokio::select! {
            made = Ready::make(&hypervisor, &configuration, run_dir, &self.log) => made?,
            // It says nothing meanwhile: it has ended.
            _ = keeper.readable() => return Ok(()),
        };
        keeper.try_write(ready.kept().name().as_bytes()).map_err(Error::io("the keeper"))?;
        let conversation = tokio::select! {
            conversation = taken(&keeper) => conversation,
            why = ready.lost() => return Err(Error::Unavailable(format!("the machine ended while it waited: {why}"))),
        };
        let Some(conversation) = conversation.map_err(Error::io("the keeper"))? else {
            ready.end().await;
            return Ok(());
        };
        let (order, listener) = self.become_it(conversation, &ready)?;
        ready.tell_when_used(keeper.into_std().map_err(Error::io("the keeper"))?.into());
        let shim = serve::Shim { namespace: order.namespace, events: order.events };
        let served = serve::serve(listener, &shim, Some(ready), &self.log, self.verbosity.clone()).await;
        served.inspect_err(|error| slog::crit!(self.log, "{error}"))
    }

    /// Takes the order, and says so only once this is the shim that it asks for.
    fn become_it(&self, conversation: OwnedFd, ready: &Ready) -> Result<(Order, UnixListener)> {
        let conversation = Conversation::from(conversation);
        let (order, listener) = ordered(&conversation).map_err(Error::io("whoever asked for a shim"))?;
        if order.version != env!("CARGO_PKG_VERSION") {
            return Err(Error::FailedPrecondition(format!("a shim of version {} is wanted", order.version)));
        }
        std::env::set_current_dir(&order.bundle).map_err(Error::io(order.bundle.display()))?;
        self.outlet.change(&order.bundle, &order.id)?;
        if order.debug {
            self.verbosity.raise();
        }
        let all: Vec<_> = std::iter::once(std::process::id()).chain(ready.processes()).collect();
        if let Err(why) = host_cgroup::follow(&order.cgroups, &all) {
            warn!(self.log, "the shim stays in its keeper's cgroup"; "why" => why.to_string());
        }
        self.call_it(&order);
        hush().map_err(Error::os("standard error"))?;
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true).map_err(Error::io("listening socket"))?;
        writeln!(&conversation, "{}", std::process::id()).map_err(Error::io("whoever asked for a shim"))?;
        info!(self.log, "a shim that waited is the sandbox's");
        Ok((order, listener))
    }

    /// Has others see a shim as any.
    fn call_it(&self, order: &Order) {
        let words = ["-namespace", &order.namespace, "-id", &order.id, "-address", &order.address];
        let debug = order.debug.then_some("-debug");
        let words = words.into_iter().chain(debug).map(AsRef::as_ref);
        let all: Vec<_> = std::iter::once(self.program.as_os_str()).chain(words).collect();
        title::change(&all);
    }
}

/// The connection of whoever asks for a shim; `None` when the keeper has ended.
async fn taken(keeper: &UnixStream) -> std::io::Result<Option<OwnedFd>> {
    loop {
        keeper.readable().await?;
        match keeper.try_io(Interest::READABLE, || order::receive(keeper)) {
            Ok((_, fd)) => return Ok(fd),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn ordered(conversation: &Conversation) -> std::io::Result<(Order, OwnedFd)> {
    conversation.set_nonblocking(false)?;
    conversation.set_read_timeout(Some(PATIENCE))?;
    conversation.set_write_timeout(Some(PATIENCE))?;
    writeln!(&*conversation, "{}", std::process::id())?;
    Order::receive(conversation)
}

/// Nobody reads the standard error of a shim, and its keeper need not be there for ever.
fn hush() -> nix::Result<()> {
    let null = File::from(nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?);
    nix::unistd::dup2_stderr(null)
}
