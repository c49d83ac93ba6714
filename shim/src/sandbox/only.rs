//! The one sandbox of a shim: booted for the container that owns it, or for a pod that needs no such container, and
//! joined by the others.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use configuration::Configuration;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use oci_spec::runtime::Spec;
use slog::Logger;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard};
use vmm::Hypervisor;

use super::{Clock, Provisions, Sandbox, boot, options};
use crate::{
    container::bundle::SandboxRef,
    error::{Error, Result},
    factory::Ready,
    hooks::ContainerHooks,
    logging::Verbosity,
    network::{Network, forward},
};

/// Holds the sandbox once there is one.
pub(crate) struct OnlySandbox {
    namespace: String,
    hypervisor: Arc<dyn Hypervisor>,
    known: Mutex<Known>,
    /// A machine that was made before anybody asked for it.
    ready: Mutex<Option<Ready>>,
    /// Held from the beginning of a boot until its sandbox is kept or dropped.
    making: AsyncMutex<()>,
    log: Logger,
    verbosity: Verbosity,
}

#[derive(Default)]
struct Known {
    /// What is to be booted, or was, by calls of its own rather than with a container.
    prepared: Option<Arc<Prepared>>,
    current: Option<Arc<Sandbox>>,
}

/// A sandbox that containerd has asked for apart from its containers.
pub(crate) struct Prepared {
    pub(crate) id: String,
    pub(crate) at: SystemTime,
    /// containerd's directory for it.
    pub(crate) bundle: PathBuf,
    spec: Spec,
    provisions: Provisions,
    configuration: Configuration,
}

/// That nobody else makes a sandbox.
pub(crate) struct Making<'a>(
    #[expect(dead_code, reason = "held for its drop alone")] AsyncMutexGuard<'a, ()>,
);

impl OnlySandbox {
    pub(crate) fn new(
        namespace: &str,
        hypervisor: Arc<dyn Hypervisor>,
        ready: Option<Ready>,
        log: Logger,
        verbosity: Verbosity,
    ) -> OnlySandbox {
        OnlySandbox {
            namespace: namespace.to_string(),
            hypervisor,
            known: Mutex::default(),
            ready: Mutex::new(ready),
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
        hooks: Option<&Arc<ContainerHooks>>,
        options: Option<&Any>,
    ) -> Result<(Arc<Sandbox>, Option<Making<'_>>)> {
        // Of a sandbox that is no container, containerd knows by itself what belongs to it: annotations need not say so.
        if !wanted.is_own || self.prepared().is_some() {
            return self.join(&wanted.id).map(|sandbox| (sandbox, None));
        }
        let making = self.claim(&wanted.id)?;
        let clock = Clock::start(self.log.clone());
        clock.mark("create_received");
        let configuration = self.configuration(options, spec)?;
        let plan = boot::Plan {
            namespace: &self.namespace,
            id: &wanted.id,
            spec,
            hooks,
            provisions: &Provisions::default(),
            configuration: &configuration,
        };
        let sandbox = self.boot(plan, clock).await?;
        Ok((sandbox, Some(making)))
    }

    /// Checks what can be checked of a sandbox that is to be booted by [`OnlySandbox::boot_prepared`].
    ///
    /// # Errors
    /// What is wrong with the configuration; `AlreadyExists` when one was prepared, `FailedPrecondition` when the shim
    /// has a container's.
    pub(crate) fn prepare(
        &self,
        id: &str,
        bundle: PathBuf,
        spec: Spec,
        provisions: Provisions,
        options: Option<&Any>,
    ) -> Result<()> {
        if let Some(there) = self.prepared() {
            return Err(Error::AlreadyExists(format!(
                "sandbox {id}: this shim has been given sandbox {} already",
                there.id
            )));
        }
        // Not while a container's is booted.
        let _making = self.claim(id)?;
        let configuration = self.configuration(options, &spec)?;
        let (id, at) = (id.to_owned(), SystemTime::now());
        let prepared = Prepared { id, at, bundle, spec, provisions, configuration };
        self.known().prepared = Some(Arc::new(prepared));
        Ok(())
    }

    /// Boots what was prepared. As with [`OnlySandbox::obtain`], it is the caller's alone until it is kept.
    ///
    /// # Errors
    /// `NotFound` for what was not prepared, `FailedPrecondition` when it is being booted or was; else why the machine
    /// did not come up.
    pub(crate) async fn boot_prepared(&self, id: &str) -> Result<(Arc<Sandbox>, Making<'_>)> {
        let (prepared, _) = self.find(id)?;
        let making = self.claim(id)?;
        let clock = Clock::start(self.log.clone());
        clock.mark("start_received");
        let plan = boot::Plan {
            namespace: &self.namespace,
            id,
            spec: &prepared.spec,
            hooks: None,
            provisions: &prepared.provisions,
            configuration: &prepared.configuration,
        };
        let sandbox = self.boot(plan, clock).await?;
        Ok((sandbox, making))
    }

    async fn boot(&self, plan: boot::Plan<'_>, clock: Clock) -> Result<Arc<Sandbox>> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        boot::boot(plan, self.hypervisor.as_ref(), ready, clock, &self.log).await
    }

    /// What was prepared by that name, and its sandbox if it has been booted.
    ///
    /// # Errors
    /// `NotFound` for any other.
    pub(crate) fn find(&self, id: &str) -> Result<(Arc<Prepared>, Option<Arc<Sandbox>>)> {
        let known = self.known();
        let prepared = known.prepared.clone().filter(|prepared| prepared.id == id);
        let prepared = prepared.ok_or_else(|| {
            Error::NotFound(format!("sandbox {id}: this shim has none of that name that CreateSandbox made"))
        })?;
        Ok((prepared, known.current.clone()))
    }

    /// What was prepared, whatever its name is.
    pub(crate) fn prepared(&self) -> Option<Arc<Prepared>> {
        self.known().prepared.clone()
    }

    /// Whether one is being booted.
    pub(crate) fn is_being_made(&self) -> bool {
        self.making.try_lock().is_err()
    }

    /// Whether the shim has a sandbox, or was given one to be.
    pub(crate) fn is_there(&self) -> bool {
        let known = self.known();
        known.prepared.is_some() || known.current.is_some()
    }

    /// The shim's sandbox, also when it has ended.
    pub(crate) fn current(&self) -> Option<Arc<Sandbox>> {
        self.known().current.clone()
    }

    fn join(&self, id: &str) -> Result<Arc<Sandbox>> {
        let known = self.known();
        let Some(sandbox) = &known.current else {
            let first = match known.prepared {
                None => "its own container must be created first",
                Some(_) => "it must be started first",
            };
            return Err(Error::FailedPrecondition(format!("sandbox {id} does not run: {first}")));
        };
        sandbox.is_up().map(|()| sandbox.clone())
    }

    /// The right to make a sandbox, if there is none and nobody makes one.
    fn claim(&self, id: &str) -> Result<Making<'_>> {
        let making = self.making.try_lock().ok().filter(|_| self.known().current.is_none());
        making.map(Making).ok_or_else(|| {
            Error::FailedPrecondition(format!(
                "this shim has its sandbox already, {id} needs a shim of its own"
            ))
        })
    }

    fn configuration(&self, options: Option<&Any>, spec: &Spec) -> Result<Configuration> {
        let configuration = options::configuration(options, spec, &self.log)?;
        if configuration.runtime.debug {
            self.verbosity.raise();
        }
        Ok(configuration)
    }

    /// Makes `sandbox` the shim's own. Its network is followed from here on: before, whoever makes it is the only one who
    /// keeps it, so that it ends with them.
    pub(crate) fn keep(&self, sandbox: &Arc<Sandbox>, _made: Making<'_>) {
        Network::follow(sandbox, &self.log);
        forward::offer(sandbox, &self.log);
        self.known().current = Some(sandbox.clone());
    }

    /// Stops the sandbox, if there is one, and waits until nothing of it is left.
    pub(crate) async fn stop(&self, why: &str) {
        if let Some(sandbox) = self.current() {
            sandbox.stop(why).await;
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
