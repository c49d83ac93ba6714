//! Programs of the host's that a container's configuration has run at points of its life (OCI runtime specification,
//! "POSIX-platform Hooks").
//!
//! ```text
//! Create: prestart, createRuntime -> Start: poststart -> Delete: poststop
//! ```
//!
//! They run in the pod's network namespace, and are given the id of a thread that is in it: what sets up networks by
//! hooks looks there. Those that belong into the container's own namespaces have none on the host.

mod run;
mod state;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use oci_spec::runtime::{Hook, Hooks, Spec};
use slog::{Logger, warn};

use crate::{error::Result, thread};
use state::{State, Status};

/// How long a hook may take that has no timeout of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// The hooks of one container.
#[derive(Debug, Clone)]
pub(crate) struct ContainerHooks {
    hooks: Hooks,
    state: State,
    bundle: PathBuf,
}

/// When hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// The container is being created, and its network namespace is there.
    Creation,
    /// Its process runs.
    Started,
    /// It is gone.
    Stopped,
}

impl ContainerHooks {
    /// Those of container `id`, if it has any that this runtime carries out; the log tells of the others.
    pub(crate) fn of(
        spec: &Spec,
        id: &str,
        bundle: &std::path::Path,
        log: &Logger,
    ) -> Option<ContainerHooks> {
        let hooks = spec.hooks().clone()?;
        let inside = [hooks.create_container(), hooks.start_container()];
        if inside.into_iter().flatten().any(|hooks| !hooks.is_empty()) {
            warn!(log, "hooks createContainer and startContainer do not run: the container's namespaces are in the \
                virtual machine"; "container" => id);
        }
        let hooks = ContainerHooks { hooks, state: State::of(spec, id, bundle), bundle: bundle.to_owned() };
        let points = [Point::Creation, Point::Started, Point::Stopped];
        points.into_iter().any(|point| hooks.has(point)).then_some(hooks)
    }

    /// Whether there is anything to do at `point`.
    pub(crate) fn has(&self, point: Point) -> bool {
        self.at(point).next().is_some()
    }

    fn at(&self, point: Point) -> impl Iterator<Item = &Hook> {
        #[allow(deprecated, reason = "tools still write prestart hooks")]
        let lists = match point {
            Point::Creation => [self.hooks.prestart(), self.hooks.create_runtime()],
            Point::Started => [self.hooks.poststart(), &None],
            Point::Stopped => [self.hooks.poststop(), &None],
        };
        lists.into_iter().flatten().flatten()
    }

    /// Runs those of `point` on this thread, which is in the pod's network namespace, one after the other.
    ///
    /// # Errors
    /// Which hook did not end well, and the last of what it said; those behind it have not run, but at
    /// [`Point::Stopped`].
    pub(crate) fn run(&self, point: Point) -> Result<()> {
        let status = match point {
            Point::Creation => Status::Creating,
            Point::Started => Status::Running,
            Point::Stopped => Status::Stopped,
        };
        let state = self.state.at(status, nix::unistd::gettid().as_raw());
        let mut outcome = Ok(());
        for hook in self.at(point) {
            let ran = run::hook(hook, &state, &self.bundle);
            if point != Point::Stopped {
                ran?;
            } else {
                outcome = outcome.and(ran);
            }
        }
        outcome
    }

    /// The same on a thread of its own, in the namespace at `namespace` if that is there. What goes wrong after the
    /// container's creation is the log's alone, as the specification has it.
    pub(crate) async fn run_apart(
        &self,
        point: Point,
        namespace: Option<PathBuf>,
        log: &Logger,
    ) -> Result<()> {
        if !self.has(point) {
            return Ok(());
        }
        let own = self.clone();
        let ran = thread::run("hooks", move || {
            if let Some(namespace) = namespace.filter(|path| path.exists()) {
                crate::network::enter(&namespace)?;
            }
            own.run(point)
        });
        match (ran.await, point) {
            (Err(error), Point::Started | Point::Stopped) => {
                warn!(log, "a hook did not end well"; "why" => error.to_string());
                Ok(())
            }
            (ran, _) => ran,
        }
    }
}
