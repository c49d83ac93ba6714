//! Programs of the host's that a container's configuration has run at points of its life (OCI runtime specification,
//! "POSIX-platform Hooks").
//!
//! ```text
//! Create: prestart, createRuntime -> Start: poststart -> Delete, a Create that failed, or the delete action: poststop
//! ```
//!
//! They run in the pod's network namespace, and are given the id of a thread that is in it: what sets up networks by
//! hooks looks there. In one that is made for them only the first ones do: it has no name to come back by. Those that belong into the container's own namespaces have none on the host.

mod run;
mod state;
#[cfg(test)]
mod tests;

use std::{
    fs,
    mem::take,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oci_spec::runtime::{Hook, Hooks, Spec};
use slog::{Discard, Logger, o, warn};

use crate::{
    error::{Error, Result},
    network, thread,
};
use state::{State, Status};

/// How long a hook may take that has no timeout of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// The file in a bundle that says that poststop hooks are due.
const DUE: &str = "hooks-due";

/// The hooks of one container. Dropped, those that free what the first ones took have run or do so.
#[derive(Debug)]
pub(crate) struct ContainerHooks {
    hooks: Hooks,
    state: State,
    bundle: PathBuf,
    /// Where the container's network is, if that was there before.
    namespace: Option<PathBuf>,
    /// Whether poststop hooks are to run.
    due: AtomicBool,
    log: Logger,
}

impl ContainerHooks {
    /// Those of container `id`, if it has any that this runtime carries out; the log tells of the others.
    pub(crate) fn of(spec: &Spec, id: &str, bundle: &Path, log: &Logger) -> Option<Arc<ContainerHooks>> {
        let hooks = spec.hooks().clone()?;
        let inside = [hooks.create_container(), hooks.start_container()];
        if inside.into_iter().flatten().any(|hooks| !hooks.is_empty()) {
            warn!(log, "hooks createContainer and startContainer do not run: the container's namespaces are in the \
                virtual machine"; "container" => id);
        }
        let hooks = ContainerHooks {
            hooks,
            state: State::of(spec, id, bundle),
            bundle: bundle.to_owned(),
            namespace: network::namespace_of(spec),
            due: AtomicBool::new(false),
            log: log.clone(),
        };
        let mut all = [Status::Creating, Status::Running, Status::Stopped].into_iter();
        all.any(|status| hooks.at(status).next().is_some()).then(|| Arc::new(hooks))
    }

    /// Whether something is to run when the container is created.
    pub(crate) fn at_creation(&self) -> bool {
        self.at(Status::Creating).next().is_some()
    }

    /// Runs what is to run when the container is created, on this thread, which is in the pod's network namespace.
    ///
    /// # Errors
    /// Which hook did not end well, and the last of what it said; those behind it have not run.
    pub(crate) fn create(&self) -> Result<()> {
        self.begin()?;
        self.run(Status::Creating)
    }

    /// The same on a thread of its own, for a container that joins a network that is there.
    ///
    /// # Errors
    /// The same, and `InvalidArgument` for a namespace that cannot be entered.
    pub(crate) async fn create_apart(self: &Arc<Self>) -> Result<()> {
        self.apart(ContainerHooks::create).await
    }

    async fn apart(self: &Arc<Self>, run: fn(&Self) -> Result<()>) -> Result<()> {
        let own = self.clone();
        let run = move || own.namespace.as_deref().map_or(Ok(()), network::enter).and_then(|()| run(&own));
        thread::run("hooks", run).await
    }

    /// From here on there is, or may be, something that poststop hooks are to free.
    ///
    /// # Errors
    /// That cannot be written down in the bundle.
    pub(crate) fn begin(&self) -> Result<()> {
        let due = self.bundle.join(DUE);
        fs::write(&due, "").map_err(Error::io(due.display()))?;
        self.due.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Runs what is to run once the container's process does. What goes wrong is the log's alone, as the specification
    /// has it.
    pub(crate) async fn started(self: &Arc<Self>) {
        if self.at(Status::Running).next().is_none() {
            return;
        }
        if let Err(error) = self.apart(|own| own.run(Status::Running)).await {
            warn!(self.log, "a hook did not end well"; "why" => error.to_string());
        }
    }

    /// Runs what is to run once the container is gone, if what runs first has.
    pub(crate) async fn stopped(self: &Arc<Self>) {
        let own = self.clone();
        if let Err(error) = thread::run("hooks", move || own.stop()).await {
            warn!(self.log, "a hook did not end well"; "why" => error.to_string());
        }
    }

    fn stop(&self) -> Result<()> {
        if !self.due.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        // What was the namespace may be gone, and hooks are to free what is elsewhere all the same.
        let _ = self.namespace.as_deref().map(network::enter);
        let ran = self.run(Status::Stopped);
        let _ = fs::remove_file(self.bundle.join(DUE));
        ran
    }

    fn at(&self, status: Status) -> impl Iterator<Item = &Hook> {
        #[allow(deprecated, reason = "tools still write prestart hooks")]
        let lists = match status {
            Status::Creating => [self.hooks.prestart(), self.hooks.create_runtime()],
            Status::Running => [self.hooks.poststart(), &None],
            Status::Stopped => [self.hooks.poststop(), &None],
        };
        lists.into_iter().flatten().flatten()
    }

    /// One after the other. A hook that does not end well keeps the next ones from running, but where they free what
    /// others took.
    fn run(&self, status: Status) -> Result<()> {
        let state = self.state.at(status, nix::unistd::gettid().as_raw());
        let mut outcome = Ok(());
        for hook in self.at(status) {
            let ran = run::hook(hook, &state, &self.bundle);
            match status {
                Status::Stopped => outcome = outcome.and(ran),
                Status::Creating | Status::Running => ran?,
            }
        }
        outcome
    }
}

impl Drop for ContainerHooks {
    fn drop(&mut self) {
        if !self.due.swap(false, Ordering::Relaxed) {
            return;
        }
        // A creation that failed, or whose caller has gone. Nobody is to wait for it here; should the shim end before it
        // is done, the delete action finds it due.
        let own = ContainerHooks {
            hooks: take(&mut self.hooks),
            state: self.state.clone(),
            bundle: take(&mut self.bundle),
            namespace: self.namespace.take(),
            due: AtomicBool::new(true),
            log: self.log.clone(),
        };
        let stop = move || {
            if let Err(error) = own.stop() {
                warn!(own.log, "a hook did not end well"; "why" => error.to_string());
            }
        };
        let _ = std::thread::Builder::new().name("hooks".into()).spawn(stop);
    }
}

/// Runs what a shim that died was to run once the bundle's container `id` is gone.
///
/// # Errors
/// Which hook did not end well.
pub(crate) fn run_left(spec: &Spec, id: &str, bundle: &Path) -> Result<()> {
    let log = Logger::root(Discard, o!());
    let hooks = ContainerHooks::of(spec, id, bundle, &log).filter(|_| bundle.join(DUE).exists());
    let Some(hooks) = hooks else { return Ok(()) };
    hooks.due.store(true, Ordering::Relaxed);
    let run = std::thread::Builder::new().name("hooks".into()).spawn(move || hooks.stop());
    let ran = run.map_err(Error::io("thread for hooks"))?.join();
    ran.unwrap_or_else(|_| Err(Error::Failed("hooks: the thread ended without an answer".into())))
}
