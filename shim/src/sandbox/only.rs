//! The one sandbox of a shim: booted for the container that owns it, joined by the others of its pod.

use std::sync::{Arc, Mutex, PoisonError};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use oci_spec::runtime::Spec;
use slog::Logger;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use vmm::Hypervisor;

use super::{Clock, Sandbox, boot, options};
use crate::{
    container::bundle::SandboxRef,
    error::{Error, Result},
    logging::Verbosity,
};

/// Holds the sandbox once there is one.
pub(crate) struct OnlySandbox {
    namespace: String,
    hypervisor: Arc<dyn Hypervisor>,
    current: Mutex<Option<Arc<Sandbox>>>,
    /// Held from the beginning of a boot until its sandbox is kept or dropped.
    making: AsyncMutex<()>,
    log: Logger,
    verbosity: Verbosity,
}

/// That nobody else makes a sandbox.
pub(crate) struct Making<'a>(#[expect(dead_code, reason = "held for its drop alone")] MutexGuard<'a, ()>);

impl OnlySandbox {
    pub(crate) fn new(
        namespace: &str,
        hypervisor: Arc<dyn Hypervisor>,
        log: Logger,
        verbosity: Verbosity,
    ) -> OnlySandbox {
        OnlySandbox {
            namespace: namespace.to_string(),
            hypervisor,
            current: Mutex::new(None),
            making: AsyncMutex::new(()),
            log,
            verbosity,
        }
    }

    /// The sandbox that `wanted` means. One that had to be booted comes with a [`Making`] and is the caller's alone
    /// until [`OnlySandbox::keep`]: dropped, it is gone.
    ///
    /// # Errors
    /// What is wrong with the configuration, or why the machine did not come up; `FailedPrecondition` when the
    /// shim has another sandbox, or not yet the one to join.
    pub(crate) async fn obtain(
        &self,
        wanted: &SandboxRef,
        spec: &Spec,
        options: Option<&Any>,
    ) -> Result<(Arc<Sandbox>, Option<Making<'_>>)> {
        let making = match (self.current(), wanted.is_own, self.making.try_lock()) {
            (Some(sandbox), false, _) => return sandbox.is_up().map(|()| (sandbox.clone(), None)),
            (None, false, _) => {
                Err(format!("sandbox {} does not run: its own container must be created first", wanted.id))
            }
            (None, true, Ok(making)) => Ok(Making(making)),
            (_, true, _) => {
                Err(format!("this shim has its sandbox already, {} needs a shim of its own", wanted.id))
            }
        }
        .map_err(Error::FailedPrecondition)?;
        let clock = Clock::start(self.log.clone());
        clock.mark("create_received");
        let configuration = options::configuration(options, spec, &self.log)?;
        if configuration.runtime.debug {
            self.verbosity.raise();
        }
        let plan =
            boot::Plan { namespace: &self.namespace, id: &wanted.id, spec, configuration: &configuration };
        let sandbox = boot::boot(plan, self.hypervisor.as_ref(), clock, &self.log).await?;
        Ok((sandbox, Some(making)))
    }

    /// Makes `sandbox` the shim's own.
    pub(crate) fn keep(&self, sandbox: &Arc<Sandbox>, _made: Making<'_>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(sandbox.clone());
    }

    /// Stops the sandbox, if there is one, and waits until nothing of it is left.
    pub(crate) async fn stop(&self, why: &str) {
        if let Some(sandbox) = self.current() {
            sandbox.stop(why).await;
        }
    }

    fn current(&self) -> Option<Arc<Sandbox>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
