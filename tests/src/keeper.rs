//! `factory init` with machines that it keeps ready.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::case::PATIENCE;
use crate::command::run;
use crate::{Case, Result, check, eventually, operator};

/// The keeper of a case. Dropped, it is ended in order.
pub struct Keeper<'a> {
    case: &'a Case<'a>,
    machines: u32,
    /// The file that it was started with.
    pub configuration: PathBuf,
    process: Child,
}

impl<'a> Keeper<'a> {
    /// Has so many machines ready, of 256 MiB and with what `edit` adds.
    pub fn start(
        case: &'a Case<'a>,
        machines: u32,
        edit: impl FnOnce(&mut operator::Configuration),
    ) -> Result<Keeper<'a>> {
        let configuration = case.configuration(|file| {
            file.set("factory.vm_cache_number", i64::from(machines))
                .set("factory.vm_cache_endpoint", operator::path(&Keeper::endpoint(case)))
                .set("hypervisor.qemu.default_memory", 256);
            edit(file);
        })?;
        let mut command = factory(case, "init", &configuration);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let keeper = Keeper { case, machines, configuration, process };
        keeper.is_full()?;
        Ok(keeper)
    }

    /// Where the keeper of a case is asked.
    pub fn endpoint(case: &Case<'_>) -> PathBuf {
        case.dir().join("cache.sock")
    }

    /// Waits until all machines are ready.
    pub fn is_full(&self) -> Result<()> {
        let full = format!("{0} of {0} machines are ready", self.machines);
        eventually(PATIENCE, || {
            let status = run(&mut factory(self.case, "status", &self.configuration), PATIENCE)?;
            let status = status.exits(0)?.out();
            check!(status.contains(&full), "status: {status}");
            Ok(())
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The shims that it has started and that still live, waiting or not.
    pub fn shims(&self) -> Result<HashSet<u32>> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        children.split_whitespace().map(|pid| Ok(pid.parse()?)).collect()
    }

    /// Ends it, and returns its exit status, if it has one.
    pub fn end(&mut self, signal: Signal) -> Result<Option<i32>> {
        kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?;
        Ok(self.process.wait()?.code())
    }
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.end(Signal::SIGTERM);
        }
    }
}

/// The shim's `factory` with an action and a configuration.
pub fn factory(case: &Case<'_>, action: &str, configuration: &Path) -> Command {
    let mut command = Command::new(&case.world.assets().shim);
    command.args(["factory", action, "-config"]).arg(configuration);
    command
}
