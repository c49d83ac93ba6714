//! Machines that start as copies of one that was saved after its boot, a template.
//!
//! ```text
//! specification -> key --store--> template there -> the machine is a copy of it
//!                               '-> none, nobody at it -> make: boot, warm, save -> a copy of that
//!                               '-> none, somebody makes it, or it fails -> the machine boots by itself
//! ```

mod command;
mod key;
mod make;
mod ready;
mod store;
mod warm;

use std::path::Path;

use agent_protocol::agent::Storage;
use configuration::Configuration;
use slog::{Logger, warn};
use vmm::{
    Hypervisor, VmSpec,
    spec::{Origin, Restore},
};

pub(crate) use command::{Factory, run};
use key::Key;
pub(crate) use ready::{Asleep, Kept, Ready, pids};
use store::{Files, Store, Verdict};

/// What a template is made with.
pub(crate) struct Maker<'a> {
    pub(crate) hypervisor: &'a dyn Hypervisor,
    pub(crate) configuration: &'a Configuration,
    /// What a guest mounts of the host.
    pub(crate) storages: &'a [Storage],
    pub(crate) log: &'a Logger,
}

impl Maker<'_> {
    /// Where the machine's first state is to come from. Whatever is wrong with templates, a machine can boot by itself.
    pub(crate) async fn origin_of(&self, spec: &VmSpec) -> Origin {
        let Some(directory) = &self.configuration.factory.templates else { return Origin::Boot };
        match self.template(directory, spec).await {
            Ok(files) => copy_of(files, spec),
            Err(why) => {
                warn!(self.log, "no template: the machine boots by itself"; "why" => why);
                Origin::Boot
            }
        }
    }

    async fn template(&self, directory: &Path, spec: &VmSpec) -> Result<Files, String> {
        if let Some(what) = spec.against_template() {
            return Err(format!("{what} cannot be had with a template: unset factory.enable_template"));
        }
        let hypervisor = &self.configuration.hypervisor;
        // Otherwise there would be a file of memory for each size that anybody ever asked for.
        if (spec.vcpus.boot(), spec.memory.mib())
            != (hypervisor.default_vcpus, hypervisor.default_memory_mib.into())
        {
            return Err(
                "templates are of default_vcpus and default_memory, and the machine is bigger".to_owned()
            );
        }
        let store = Store::open(directory)?;
        let key = Key::of(spec)?;
        if let Some(files) = store.find(&key) {
            return Ok(files);
        }
        let Some(lock) = store.lock()? else {
            return Err("somebody else is making it".to_owned());
        };
        // Whoever had the lock may have made it meanwhile.
        if let Some(files) = store.find(&key) {
            return Ok(files);
        }
        self.make(&lock, &key, spec).await
    }

    /// Takes in that a copy did not come up. A template is removed when two in a row did not: one may have been killed, or
    /// was on a host that was too busy.
    pub(crate) fn doubt(&self, origin: &Origin, why: &str) {
        let Origin::Copy { memory, .. } = origin else { return };
        let verdict = match store::doubt(memory) {
            Verdict::Gone => "the template was removed meanwhile",
            Verdict::Doubted => {
                "a copy of the template did not come up; the next one that does not has it removed"
            }
            Verdict::Useless => "the template is of no use, and is removed",
        };
        warn!(self.log, "{verdict}: the machine boots by itself"; "why" => why);
    }

    /// Takes in that a copy came up.
    pub(crate) fn trust(&self, origin: &Origin) {
        if let Origin::Copy { memory, .. } = origin {
            store::trust(memory);
        }
    }
}

fn copy_of(files: Files, spec: &VmSpec) -> Origin {
    let restore = if spec.shares_memory() { Restore::Load } else { Restore::CopyOnWrite };
    Origin::Copy { memory: files.memory, state: files.state, restore }
}
