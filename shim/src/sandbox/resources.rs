//! How big a sandbox's machine is: what it has for itself, and what its containers may use.
//!
//! ```text
//! admit: its limits are noted -> more processors and memory -> the guest uses them -> the container is made
//! drop of the Part: its limits are forgotten -> the guest lets go -> what can be taken away goes
//! ```
//!
//! With `static_sandbox_resource_mgmt` the machine stays as it was booted.

mod cpus;
mod limits;
mod pins;
mod sets;
mod wish;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use agent_client::AgentClient;
use configuration::Configuration;
use oci_spec::runtime::Spec;
use slog::{Logger, info, warn};
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::sleep,
};
use vmm::{Vm, VmSpec, plug::MemorySize, spec::Capabilities};

use super::{Phase, Sandbox};
use crate::{
    container::bundle,
    error::{Error, Result},
};
pub(crate) use limits::Limits;
use pins::Pins;
pub(crate) use sets::check as check_sets;
use wish::Counted;

/// What memory comes in, in MiB: the size of a guest's memory blocks, if it has less than 64 GiB.
const BLOCK_MIB: u64 = 128;

/// How long a machine keeps what no container needs: one that ends is often started anew, and what a guest has let go of
/// then has to be given to it again.
const GRACE: Duration = Duration::from_secs(3);

/// Processors and memory of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) vcpus: u32,
    pub(crate) mib: u64,
}

impl Size {
    /// That of a machine without containers.
    fn default_of(configuration: &Configuration) -> Size {
        let hypervisor = &configuration.hypervisor;
        Size { vcpus: hypervisor.default_vcpus, mib: hypervisor.default_memory_mib.into() }
    }

    fn most_of(configuration: &Configuration) -> Size {
        let hypervisor = &configuration.hypervisor;
        Size { vcpus: hypervisor.default_maxvcpus, mib: hypervisor.default_maxmemory_mib }
    }

    fn min(self, other: Size) -> Size {
        Size { vcpus: self.vcpus.min(other.vcpus), mib: self.mib.min(other.mib) }
    }

    fn max(self, other: Size) -> Size {
        Size { vcpus: self.vcpus.max(other.vcpus), mib: self.mib.max(other.mib) }
    }
}

/// How big the machine of a sandbox starts whose first container is `spec`: with what is known to be needed, unless it
/// was made ahead of time, or is a pod's, and can grow.
///
/// # Errors
/// `InvalidArgument` for a pod's annotation that is no number.
pub(super) fn at_boot(
    configuration: &Configuration,
    spec: &Spec,
    board: Capabilities,
    log: &Logger,
) -> Result<Size> {
    let (default, most) = (Size::default_of(configuration), Size::most_of(configuration));
    let grows = board.cpu_hot_plug && board.memory_devices && configuration.hypervisor.numa.is_none();
    let grows = grows && !configuration.runtime.static_resources;
    let factory = &configuration.factory;
    if grows && (factory.templates.is_some() || factory.cache.is_some() || bundle::is_pod(spec)) {
        return Ok(default);
    }
    let wanted = known_at_boot(configuration, spec)?;
    warn_of_what_is_missing(wanted, most, log);
    let block = common_multiple(BLOCK_MIB, configuration.hypervisor.memory_step_mib);
    let blocks = (wanted.mib - default.mib).div_ceil(block);
    let whole = Size { mib: default.mib.saturating_add(blocks.saturating_mul(block)), ..wanted };
    Ok(whole.min(most))
}

/// The least of two numbers, or the most there is; none is a multiple of 0 but 0.
fn common_multiple(one: u64, other: u64) -> u64 {
    let (mut divisor, mut rest) = (one, other);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    one.checked_div(divisor).unwrap_or(0).saturating_mul(other)
}

/// What is needed, as far as that can be known before there is a machine: a pod's containers are still to come, but
/// containerd tells what they will have together.
fn known_at_boot(configuration: &Configuration, spec: &Spec) -> Result<Size> {
    let limits = if bundle::is_pod(spec) { Limits::of_pod(spec)? } else { Limits::of(spec) };
    Ok(limits::needed(Size::default_of(configuration), &[limits]))
}

fn warn_of_what_is_missing(wanted: Size, most: Size, log: &Logger) {
    if wanted.vcpus > most.vcpus {
        warn!(log, "containers may use more CPUs than the virtual machine can have: they share what there is";
            "default_vcpus and the containers'" => wanted.vcpus, "default_maxvcpus" => most.vcpus);
    }
    if wanted.mib > most.mib {
        warn!(log, "containers may use more memory than the virtual machine can have: they may run out of it \
            below their limits"; "default_memory and the containers', MiB" => wanted.mib,
            "default_maxmemory, MiB" => most.mib);
    }
}

/// What the containers of a sandbox may use, and what its machine was made to have for them.
pub(super) struct Resources {
    default: Size,
    most: Size,
    growth: Growth,
    /// What QEMU takes memory in multiples of, in MiB.
    step_mib: u64,
    /// Whether its processors are to be bound to its containers' CPUs.
    pins: bool,
    /// How many wishes for other limits there have been.
    wishes: AtomicU64,
    containers: Mutex<HashMap<String, Counted>>,
    /// Tells of changes of those.
    changes: watch::Sender<()>,
    /// Held across a change of the machine, so that each starts from what the one before came to.
    machine: AsyncMutex<Machine>,
    log: Logger,
}

/// How a machine may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// Not at all: the operator's choice.
    Static,
    /// Its board cannot.
    Impossible,
    Dynamic,
}

struct Machine {
    /// What containers needed when it was last changed, whether it could have that or not. Nothing while a change is
    /// under way: whoever made it may have gone.
    asked: Option<Size>,
    /// Whether it was said that the machine cannot grow.
    warned: bool,
    pins: Pins,
}

impl Resources {
    /// Those of a machine booted as `machine` for a sandbox whose first container is `spec`.
    pub(super) fn new(
        configuration: &Configuration,
        spec: &Spec,
        machine: &VmSpec,
        log: &Logger,
    ) -> Result<Resources> {
        let has = Size { vcpus: machine.vcpus.boot(), mib: machine.memory.mib() };
        let most_mib = machine.memory.growth().map_or(has.mib, |(_, most)| most);
        let most = Size { vcpus: machine.vcpus.max(), mib: most_mib };
        let default = Size::default_of(configuration);
        let growth = match (configuration.runtime.static_resources, most == has) {
            (true, _) => Growth::Static,
            (false, true) => Growth::Impossible,
            (false, false) => Growth::Dynamic,
        };
        let asked = if has == default { default } else { known_at_boot(configuration, spec)? };
        let machine = Machine { asked: Some(asked), warned: false, pins: Pins::default() };
        Ok(Resources {
            default,
            most,
            growth,
            step_mib: configuration.hypervisor.memory_step_mib,
            pins: configuration.runtime.pins_vcpus,
            containers: Mutex::default(),
            wishes: AtomicU64::default(),
            changes: watch::Sender::default(),
            machine: AsyncMutex::new(machine),
            log: log.clone(),
        })
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Counted>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn needed(&self) -> Size {
        let containers: Vec<_> = self.containers().values().map(Counted::limits).collect();
        limits::needed(self.default, &containers)
    }

    /// Resolves when containers need less memory than `mib`.
    async fn needs_less(&self, mib: u64) {
        let mut changes = self.changes.subscribe();
        while self.needed().min(self.most).mib >= mib {
            // The sender lives in self.
            let _ = changes.changed().await;
        }
    }

    /// Gives the machine what its containers need, taking nothing away.
    ///
    /// # Errors
    /// Why there is not enough memory. Too few processors are no error: containers share them.
    async fn grow(&self, vm: &dyn Vm, agent: &AgentClient) -> std::result::Result<(), String> {
        if self.growth == Growth::Static {
            return Ok(());
        }
        let mut machine = self.machine.lock().await;
        while !self.has_grown(&mut machine, vm, agent).await? {}
        Ok(())
    }

    /// Returns whether it has: not if less was needed before all of it had come.
    async fn has_grown(
        &self,
        machine: &mut Machine,
        vm: &dyn Vm,
        agent: &AgentClient,
    ) -> std::result::Result<bool, String> {
        let needed = self.needed();
        let asked = machine.asked.map_or(needed, |asked| asked.max(needed));
        if machine.asked == Some(asked) {
            return Ok(true);
        }
        if self.growth == Growth::Impossible {
            self.warn_once(machine, "its board, or its protection, takes no more processors and memory");
            return Ok(true);
        }
        warn_of_what_is_missing(asked, self.most, &self.log);
        let before = machine.asked.take().map(|before| before.min(self.most));
        let size = asked.min(self.most);
        info!(self.log, "the machine grows"; "vcpus" => size.vcpus, "mib" => size.mib);
        let mut all_vcpus = true;
        if before.is_none_or(|before| before.vcpus < size.vcpus) {
            all_vcpus = self.more_vcpus(size.vcpus, vm, agent).await;
        }
        if before.is_none_or(|before| before.mib < size.mib) {
            tokio::select! {
                grown = self.more_memory(size.mib, machine, vm, agent) => grown?,
                () = self.needs_less(size.mib) => return Ok(false),
            }
        }
        // Processors that did not come are tried again with the next container.
        machine.asked = Some(if all_vcpus { asked } else { Size { vcpus: 0, ..asked } });
        Ok(true)
    }

    /// Returns whether the guest uses that many.
    async fn more_vcpus(&self, count: u32, vm: &dyn Vm, agent: &AgentClient) -> bool {
        let has = vm.resize_vcpus(count).await.map_err(|error| error.to_string());
        // However many came, the guest is to use them.
        let wanted = if has.is_ok() { count } else { 0 };
        let used = agent.online_cpu_mem(wanted, true).await.map_err(|error| error.to_string());
        let outcome = has.and(used);
        if let Err(why) = &outcome {
            warn!(self.log, "the virtual machine has fewer CPUs than its containers may use"; "vcpus" => count,
                "why" => why);
        }
        outcome.is_ok()
    }

    async fn more_memory(
        &self,
        mib: u64,
        machine: &mut Machine,
        vm: &dyn Vm,
        agent: &AgentClient,
    ) -> std::result::Result<(), String> {
        let block_mib = self.block_mib(agent).await?;
        if block_mib == 0 {
            self.warn_once(machine, "its kernel has no memory hot plug");
            return Ok(());
        }
        let size = MemorySize { mib, block_mib };
        let has = vm.resize_memory(size).await.map_err(|error| error.to_string())?;
        // What is less than a block short is the rounding at the most there can be.
        if has + block_mib <= mib {
            return Err(format!("the guest took no more than {has} MiB"));
        }
        agent.online_cpu_mem(0, false).await.map_err(|error| error.to_string())
    }

    /// Takes from the machine what its containers no longer need, as far as the guest lets go of it.
    async fn shrink(&self, vm: &dyn Vm, agent: &AgentClient) -> std::result::Result<(), String> {
        let mut machine = self.machine.lock().await;
        let needed = self.needed();
        if self.growth != Growth::Dynamic || machine.asked == Some(needed) {
            return Ok(());
        }
        let before = machine.asked.take().map(|before| before.min(self.most));
        let size = needed.min(self.most);
        info!(self.log, "the machine shrinks"; "vcpus" => size.vcpus, "mib" => size.mib);
        if before.is_none_or(|before| before.vcpus != size.vcpus) {
            agent.online_cpu_mem(size.vcpus, true).await.map_err(|error| error.to_string())?;
            vm.resize_vcpus(size.vcpus).await.map_err(|error| error.to_string())?;
        }
        if before.is_none_or(|before| before.mib != size.mib) {
            let block_mib = self.block_mib(agent).await?;
            let size = MemorySize { mib: size.mib, block_mib };
            vm.resize_memory(size).await.map_err(|error| error.to_string())?;
        }
        machine.asked = Some(needed);
        Ok(())
    }

    /// Binds each of the machine's processors to a CPU of its containers', if those have as many.
    pub(super) async fn pin(&self, vm: &dyn Vm) {
        if !self.pins {
            return;
        }
        let mut machine = self.machine.lock().await;
        let cpus = limits::cpus(self.containers().values().map(Counted::limits));
        if let Err(why) = machine.pins.set(vm, cpus).await {
            warn!(self.log, "the machine's processors are not bound to CPUs"; "why" => why);
        }
    }

    /// MiB of a block of the guest's memory, or more of them where QEMU takes no less; 0 if its kernel takes no more memory.
    async fn block_mib(&self, agent: &AgentClient) -> std::result::Result<u64, String> {
        let details = agent.guest_details().await.map_err(|error| error.to_string())?;
        Ok(common_multiple(details.mem_block_size_bytes >> 20, self.step_mib))
    }

    fn warn_once(&self, machine: &mut Machine, why: &str) {
        if !std::mem::replace(&mut machine.warned, true) {
            warn!(self.log, "the virtual machine does not grow with its containers: they share what there is";
                "why" => why, "to_have_more" => "raise default_vcpus and default_memory");
        }
    }
}

/// A container's part of its sandbox's machine. Dropped, the machine shrinks.
pub(crate) struct Part {
    sandbox: Arc<Sandbox>,
    id: String,
}

impl Drop for Part {
    fn drop(&mut self) {
        let part = self.sandbox.resources.containers().remove(&self.id);
        self.sandbox.resources.changes.send_replace(());
        if part.is_some_and(|part| !part.limits().are_none()) {
            self.sandbox.shrink();
        }
    }
}

impl Sandbox {
    /// Makes room for a container of these limits.
    ///
    /// # Errors
    /// The limit that there is not enough memory for; `Unavailable` when there is no machine any more.
    pub(crate) async fn admit(self: &Arc<Self>, id: &str, limits: Limits) -> Result<Part> {
        self.resources.containers().insert(id.to_owned(), Counted::new(limits));
        let part = Part { sandbox: self.clone(), id: id.to_owned() };
        self.grow(id, limits).await?;
        Ok(part)
    }

    async fn grow(&self, id: &str, limits: Limits) -> Result<()> {
        if limits.are_none() {
            return Ok(());
        }
        self.is_up()?;
        let grown = tokio::select! {
            grown = self.resources.grow(self.vm.as_ref(), &self.agent) => grown,
            () = self.gone() => return self.is_up(),
        };
        self.place_processors().await;
        grown.map_err(|why| {
            Error::Failed(format!(
                "container {id} may use {} MiB of memory, which the virtual machine could not be given: {why}; \
                hypervisor.qemu.default_maxmemory is {} MiB",
                limits.bytes() >> 20,
                self.resources.most.mib
            ))
        })
    }

    /// Gives back what containers no longer need by then. Beside the caller, as a guest may take long to let go of
    /// memory.
    fn shrink(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if *self.phase.borrow() != Phase::Up {
            return;
        }
        let sandbox = Arc::downgrade(self);
        runtime.spawn(async move {
            // The CPUs may be another's from now on.
            if let Some(sandbox) = sandbox.upgrade().filter(|sandbox| sandbox.is_up().is_ok()) {
                sandbox.resources.pin(sandbox.vm.as_ref()).await;
            }
            sleep(GRACE).await;
            let Some(sandbox) = sandbox.upgrade() else { return };
            let shrunk = tokio::select! {
                shrunk = sandbox.resources.shrink(sandbox.vm.as_ref(), &sandbox.agent) => shrunk,
                () = sandbox.gone() => return,
            };
            if let Err(why) = shrunk {
                warn!(sandbox.log, "the virtual machine keeps what containers no longer need"; "why" => why);
            }
            sandbox.resources.pin(sandbox.vm.as_ref()).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::common_multiple;

    #[test]
    fn memory_comes_in_blocks_of_the_guest_s_that_are_whole_pages_of_the_host_s() {
        for (block, step, both) in
            [(128, 1, 128), (128, 6, 384), (128, 1024, 1024), (2048, 1024, 2048), (0, 6, 0)]
        {
            assert_eq!(common_multiple(block, step), both, "{block} and {step}");
        }
        assert_eq!(common_multiple(u64::MAX, u64::MAX - 1), u64::MAX, "a guest may say anything");
    }
}
