//! What the operator chose.
//!
//! ```text
//! files --tree--> one merged TOML tree --survey--> raw sections --check--> Configuration
//!   find.rs             ^   tree.rs       survey.rs, keys/        check/
//! annotations ----------'
//!   annotations/
//! ```
//!
//! The format is Kata's own `configuration.toml`, QEMU flavour. Every key of it is in [`keys`]: it is
//! honoured, or a warning names it. All problems of all files are reported at once, each with its key and file; for that
//! values become what a machine is made of here, rather than when one is.

mod agent;
pub mod annotations;
mod check;
mod choice;
mod factory;
mod find;
mod finding;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host;
mod hypervisor;
mod kernel_line;
pub mod keys;
mod program;
mod raw;
mod runtime;
mod survey;
#[cfg(test)]
mod tests;
mod tree;
mod verity;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use agent::{Agent, KernelModule};
pub use choice::{
    AcceleratorChoice, BlockAio, EmptyDirMode, ExtraMonitor, FsType, InternetworkingModel, MachineType,
    SharedFs, VfioMode, VirtioFsCache, VsockChoice,
};
pub use factory::{Factory, VmCache};
pub use find::{FILE_VARIABLE, USUAL, file_of_environment};
pub use finding::{Finding, LoadError, Origin, Place};
pub use hypervisor::{GuestMemoryDump, Hypervisor, MemoryBacking, Rates, VhostUserStore};
pub use program::Program;
pub use runtime::{BindMount, Runtime};

use annotations::Annotations;
use find::Search;
use host::Host;
use survey::Report;
use tree::Tree;

/// A value of this type was read from files, checked, and can be used as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// `[hypervisor.qemu]`: the machine and what it is made of.
    pub hypervisor: Hypervisor,
    /// `[agent.kata]`: how to talk to the guest.
    pub agent: Agent,
    /// `[runtime]`: the shim's own behaviour.
    pub runtime: Runtime,
    /// `[factory]`: machines made ahead of time.
    pub factory: Factory,
}

/// A configuration, where it came from, and what the operator should hear about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The checked configuration.
    pub configuration: Configuration,
    /// The main file, symbolic links resolved.
    pub path: PathBuf,
    /// Keys that are recognised but not honoured, and values that are allowed but doubtful.
    pub warnings: Vec<Finding>,
}

impl Configuration {
    /// Finds, reads, merges and checks the configuration.
    ///
    /// `explicit` is the file that containerd's runtime options name. Without one, `KATA_CONF_FILE` is used, then
    /// `/etc/kata-containers/configuration.toml`, then `/usr/share/defaults/kata-containers/configuration.toml`.
    /// Files that are named rather than found must be absolute, owned by root and not writable by group or others.
    ///
    /// `annotations` are those of the sandbox. What `enable_annotations` allows of `io.katacontainers.config.*` is
    /// laid over the files.
    ///
    /// # Errors
    ///
    /// [`LoadError`] says which file was not found or refused, or lists every problem of the files' contents and
    /// of the annotations.
    pub fn load(explicit: Option<&Path>, annotations: &HashMap<String, String>) -> Result<Loaded, LoadError> {
        let search = Search::of_this_machine(explicit);
        Self::load_from(&search, &Annotations::of(annotations), &Host::this())
    }

    /// The last words of the guest kernel's command line: what the agent and the guest's security need, then the
    /// operator's and the pod's own, which win.
    #[must_use]
    pub fn kernel_params(&self) -> Vec<vmm::spec::KernelParam> {
        kernel_line::words(&self.hypervisor, &self.agent)
    }

    fn load_from(search: &Search, annotations: &Annotations, host: &Host) -> Result<Loaded, LoadError> {
        let main = search.main_file()?;
        let mut report = Report::default();
        let tree = Tree::read(&main, &mut report);
        let (configuration, warnings) = Self::from_tree(tree, annotations, host, report)?;
        Ok(Loaded { configuration, path: main.path, warnings })
    }

    fn from_tree(
        mut tree: Tree,
        annotations: &Annotations,
        host: &Host,
        mut report: Report,
    ) -> Result<(Self, Vec<Finding>), LoadError> {
        // A file that could not be read may have held the very keys that would now be found missing.
        let complete = report.problems.is_empty();
        survey::names_and_types(&tree, &mut report);
        let configuration = complete.then(|| Self::of_values(&mut tree, annotations, host, &mut report));
        match configuration.flatten() {
            Some(configuration) if report.problems.is_empty() => Ok((configuration, report.warnings)),
            _ => Err(LoadError::Invalid { problems: report.problems }),
        }
    }

    fn of_values(
        tree: &mut Tree,
        annotations: &Annotations,
        host: &Host,
        report: &mut Report,
    ) -> Option<Self> {
        let has_qemu = survey::has_qemu(tree, report);
        // Where there is no machine to change, what is wrong with them is told all the same.
        annotations.lay_over(tree, report);
        check::check(survey::values(tree, has_qemu), host, tree, report)
    }
}
