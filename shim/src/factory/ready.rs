//! A machine that runs before anybody asks for it: a container has lived in it, and it is paused.

use std::{fs, os::fd::OwnedFd, path::PathBuf, time::Duration};

use agent_client::AgentClient;
use configuration::{BindMount, Configuration};
use slog::{Logger, info};
use vmm::{Hypervisor, Vm, VmSpec};

use super::{Maker, key::Key, warm};
use crate::{
    error::{Error, Result},
    sandbox::{Clock, boot, boot::MachineAndAgent, run_dir::RunDir, share::SharedTree},
};

/// The machine of a sandbox to come; dropped, nothing of it is left.
pub(crate) struct Ready {
    vm: Box<dyn Vm>,
    agent: AgentClient,
    tree: SharedTree,
    run_dir: RunDir,
    key: Key,
    /// What [`Asleep`] has.
    user: Option<OwnedFd>,
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
        let tree = SharedTree::create(run_dir.path(), &[])?;
        let machine = boot::any_machine(configuration, "ready", run_dir.path(), log)?;
        if let Some(what) = against(&machine.spec) {
            return Err(Error::FailedPrecondition(format!(
                "{what} cannot be had with machines that are kept ready: unset factory.vm_cache_number"
            )));
        }
        let key = Key::of(&machine.spec).map_err(Error::Failed)?;
        let maker = Maker { hypervisor, configuration, storages: &machine.storages, log };
        let origin = maker.origin_of(&machine.spec).await;
        let (vm, agent) =
            boot::start(&maker, &machine.spec, origin, None, &Clock::start(log.clone())).await?;
        // What is translated, read and cached once need not be again.
        if let Err(why) = warm::up(&agent, &machine.storages).await {
            info!(log, "the machine is not warm"; "why" => why.to_string());
        }
        vm.pause().await.map_err(|error| Error::Failed(format!("the machine is ready, but {error}")))?;
        Ok(Ready { vm, agent, tree, run_dir, key, user: None })
    }

    /// Whether it is what `spec` describes.
    pub(crate) fn is(&self, spec: &VmSpec) -> bool {
        against(spec).is_none() && Key::of(spec).is_ok_and(|key| key.name == self.key.name)
    }

    /// The processes of the machine.
    pub(crate) fn processes(&self) -> Vec<u32> {
        pids(self.vm.as_ref())
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
    ) -> Result<(RunDir, SharedTree, Asleep)> {
        self.run_dir.rename(run_dir)?;
        self.processes().into_iter().for_each(inherit_oom_score);
        self.tree.follow(self.run_dir.path(), shown)?;
        let asleep = Asleep { machine: (self.vm, self.agent), user: self.user };
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
    /// Somebody waits for this to be closed, which is to be when the machine is busy no more with a first container.
    pub(crate) user: Option<OwnedFd>,
}

/// The processes of a machine.
pub(crate) fn pids(vm: &dyn Vm) -> Vec<u32> {
    vm.processes().iter().map(|process| process.pid).collect()
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
