//! A machine that runs before anybody asks for it: a container has lived in it, and it is paused.

use std::{fs, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use agent_client::AgentClient;
use configuration::{BindMount, Configuration};
use sha2::{Digest, Sha256};
use slog::Logger;
use vmm::{Hypervisor, Vm, VmSpec};

use super::{Maker, key::Key, warm};
use crate::{
    error::{Error, Result},
    network,
    sandbox::{Clock, boot, boot::MachineAndAgent, run_dir::RunDir, share::SharedTree},
};

/// The machine of a sandbox to come; dropped, nothing of it is left.
pub(crate) struct Ready {
    vm: Box<dyn Vm>,
    agent: AgentClient,
    tree: Option<SharedTree>,
    run_dir: RunDir,
    kept: Kept,
    /// QEMU's: a container's network that is looked for by its process must not be the host's.
    network: Arc<OwnedFd>,
    /// What [`Asleep`] has.
    user: Option<OwnedFd>,
}

/// What a machine that is kept ready is like. Any sandbox can have it that needs one like that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept(String);

impl Kept {
    /// As long as any, in bytes.
    pub(crate) const LENGTH: usize = 64;

    /// What a sandbox of that configuration needs whose machine is `spec`.
    ///
    /// # Errors
    /// What nobody keeps ready, in the operator's terms.
    pub(crate) fn of(configuration: &Configuration, spec: &VmSpec) -> Result<Kept> {
        if let Some(what) = against(spec) {
            return Err(Error::FailedPrecondition(format!(
                "{what} cannot be had with machines that are kept ready: unset factory.vm_cache_number"
            )));
        }
        let key = Key::of(spec).map_err(Error::Failed)?;
        // Unlike a template such a machine has its monitor, and somebody who waits for its agent.
        let limit = configuration.runtime.create_container_timeout;
        let mut digest = Sha256::new();
        digest.update(format!("{} {:?} {limit:?}", key.name, spec.extra_monitor));
        Ok(Kept(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }
}

impl Ready {
    /// Starts a machine of that configuration, as a copy of a template where it says so, in a run directory of its own.
    ///
    /// # Errors
    /// Why there can be none, in the operator's terms.
    pub(crate) async fn make(
        hypervisor: &dyn Hypervisor,
        configuration: &Configuration,
        run_dir: PathBuf,
        log: &Logger,
    ) -> Result<Ready> {
        let run_dir = RunDir::create(run_dir)?;
        let machine = boot::any_machine(configuration, "ready", run_dir.path(), log)?;
        let tree = SharedTree::of(&machine.spec, run_dir.path(), &[])?;
        let kept = Kept::of(configuration, &machine.spec)?;
        let maker = Maker { hypervisor, configuration, storages: &machine.storages, log };
        let origin = maker.origin_of(&machine.spec).await;
        let network = network::new_namespace().await?;
        let spec = VmSpec { network: Some(network.clone()), ..machine.spec };
        let (vm, agent) = boot::start_anyhow(&maker, &spec, origin, None, &Clock::start(log.clone())).await?;
        // What is translated, read and cached once need not be again. What is left of a life that did not end would be in
        // the way of the next.
        let warm = warm::up(&agent, &machine.storages).await;
        warm.map_err(|why| Error::Failed(format!("a first container in the machine: {why}")))?;
        vm.pause().await.map_err(|error| Error::Failed(format!("the machine is ready, but {error}")))?;
        Ok(Ready { vm, agent, tree, run_dir, kept, network, user: None })
    }

    /// What it is like.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The processes of the machine.
    pub(crate) fn processes(&self) -> Vec<u32> {
        pids(self.vm.as_ref())
    }

    /// Whether it has not ended.
    pub(crate) fn is_there(&self) -> bool {
        self.vm.exit().borrow().is_none()
    }

    /// Waits for its end, and says what that was.
    pub(crate) async fn lost(&mut self) -> String {
        let mut exit = self.vm.exit();
        let how =
            exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.as_ref().map(ToString::to_string));
        how.unwrap_or_default()
    }

    /// Has `user` closed when the machine is used, one way or another.
    pub(crate) fn tell_when_used(&mut self, user: OwnedFd) {
        self.user = Some(user);
    }

    /// Ends it.
    pub(crate) async fn end(self) {
        // What cannot be killed now is killed again by the drop.
        let _ = self.vm.stop(Duration::ZERO).await;
    }

    /// Gives it the run directory of a sandbox, and shows these files and directories of the host to its guest.
    ///
    /// # Errors
    /// `AlreadyExists` when there is such a sandbox; nothing of the machine is left then.
    pub(crate) fn move_to(
        mut self,
        run_dir: PathBuf,
        shown: &[BindMount],
    ) -> Result<(RunDir, Option<SharedTree>, Asleep)> {
        self.run_dir.rename(run_dir)?;
        self.processes().into_iter().for_each(inherit_oom_score);
        if let Some(tree) = &mut self.tree {
            tree.follow(self.run_dir.path(), shown)?;
        }
        let asleep = Asleep { machine: (self.vm, self.agent), network: self.network, user: self.user };
        Ok((self.run_dir, self.tree, asleep))
    }
}

/// Has the kernel spare a process as it spares this one, which would have been so if it was started now.
fn inherit_oom_score(process: u32) {
    let score = fs::read("/proc/self/oom_score_adj").unwrap_or_default();
    // Without CAP_SYS_RESOURCE it cannot go down; the machine is a likelier victim then.
    let _ = fs::write(format!("/proc/{process}/oom_score_adj"), score);
}

/// A machine that is paused, in its sandbox's place.
pub(crate) struct Asleep {
    pub(crate) machine: MachineAndAgent,
    /// The network namespace that QEMU is in.
    pub(crate) network: Arc<OwnedFd>,
    /// Somebody waits for this to be closed, which is to be when the machine is busy no more with a first container.
    pub(crate) user: Option<OwnedFd>,
}

/// The processes of a machine, those that they have started themselves among them.
pub(crate) fn pids(vm: &dyn Vm) -> Vec<u32> {
    let mut all: Vec<u32> = vm.processes().iter().map(|process| process.pid).collect();
    let mut at = 0;
    while let Some(process) = all.get(at) {
        let children = vmm::children_of(*process);
        all.extend(children);
        at += 1;
    }
    all
}

/// What machines like that have of their sandboxes from the start.
fn against(spec: &VmSpec) -> Option<&'static str> {
    let others = [
        (spec.panic_dump.is_some(), "a dump of the guest's memory"),
        (spec.selinux.is_some(), "an SELinux label of a sandbox's own"),
        (
            spec.pci.bridges() == 0,
            "a machine without PCI bridges, which network interfaces are plugged into,",
        ),
    ];
    spec.against_template().or_else(|| others.into_iter().find_map(|(is_so, what)| is_so.then_some(what)))
}
