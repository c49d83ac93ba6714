//! From right types to values that can be used.

mod agent;
mod block;
mod board;
mod confidential;
mod effects;
mod factory;
mod firmware;
mod host;
mod hypervisor;
mod image;
mod memory;
mod numa;
mod places;
mod plugs;
mod rates;
mod unshared;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use vmm::spec::SpecError;

use crate::Configuration;
use crate::choice::{EmptyDirMode, InternetworkingModel};
use crate::finding::{Finding, Origin};
use crate::host::Host;
use crate::kernel_line;
use crate::keys::{AGENT, FACTORY, HYPERVISOR, QEMU_FACTORY, RUNTIME};
use crate::raw::RawRuntime;
use crate::runtime::{BindMount, Runtime};
use crate::survey::{Report, Values};
use crate::tree::Tree;

/// Checks everything, whatever else was wrong; `None` if something is missing for a whole configuration.
pub(crate) fn check(values: Values, host: &Host, tree: &Tree, report: &mut Report) -> Option<Configuration> {
    let mut checker = Checker { host, tree, report };
    let hypervisor = values.hypervisor.and_then(|values| checker.raw(HYPERVISOR, values));
    let hypervisor = hypervisor.map(|raw| checker.hypervisor(raw));
    let agent = checker.raw(AGENT, values.agent).map(|raw| checker.agent(raw));
    let runtime = checker.raw(RUNTIME, values.runtime).map(|raw| checker.runtime(raw));
    let factory = checker.raw(FACTORY, values.factory).zip(checker.raw(QEMU_FACTORY, values.qemu_factory));
    let factory = factory.map(|(kata, rust)| checker.factory((FACTORY, kata), (QEMU_FACTORY, rust)));
    if let (Some(hypervisor), Some(agent)) = (&hypervisor, &agent) {
        let fits = kernel_line::check(hypervisor, agent).map_err(text);
        checker.note(KERNEL_PARAMS, fits);
    }
    if let (Some(hypervisor), Some(runtime)) = (&hypervisor, &runtime) {
        checker.rates(hypervisor, runtime);
        checker.unshared(hypervisor, runtime);
        checker.vfio_in_the_guest(hypervisor, runtime);
    }
    Some(Configuration { hypervisor: hypervisor?, agent: agent?, runtime: runtime?, factory: factory? })
}

const KERNEL_PARAMS: &str = "hypervisor.qemu.kernel_params";
const BIND_MOUNTS: &str = "runtime.sandbox_bind_mounts";
const EMPTY_DIRS: &str = "runtime.emptydir_mode";
const NO_NETNS: &str = "runtime.disable_new_netns";
const GUEST_LABEL: &str = "runtime.guest_selinux_label";

/// User, role, type and what may follow.
fn is_selinux_label(label: &str) -> bool {
    let mut parts = label.split(':');
    let all_there = (0..3).all(|_| parts.next().is_some_and(|part| !part.is_empty()));
    all_there && label.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What checks need, and where they leave what they find.
struct Checker<'a> {
    host: &'a Host,
    tree: &'a Tree,
    report: &'a mut Report,
}

impl Checker<'_> {
    /// The table of keys and the raw type say the same; where they do not, the configuration is refused rather
    /// than half understood.
    fn raw<T: DeserializeOwned>(&mut self, table: &str, values: toml::Table) -> Option<T> {
        values
            .try_into()
            .map_err(|error: toml::de::Error| self.problem(table, error.message().to_owned()))
            .ok()
    }

    fn runtime(&mut self, raw: RawRuntime) -> Runtime {
        let label = &raw.guest_selinux_label;
        if !label.is_empty() && !is_selinux_label(label) {
            let what = format!("{label:?} is no label of SELinux, such as system_u:system_r:container_t:s0");
            self.problem(GUEST_LABEL, what);
        }
        let model = raw.internetworking_model;
        if raw.disable_new_netns && model != InternetworkingModel::None {
            let what = format!("goes with internetworking_model = \"none\", not {:?}", model.word());
            self.problem(NO_NETNS, what);
        }
        if raw.emptydir_mode != EmptyDirMode::SharedFs {
            let (word, only) = (raw.emptydir_mode.word(), EmptyDirMode::SharedFs.word());
            let what = format!("{word:?}: the guest makes no file systems on disks; {only:?} is possible");
            self.problem(EMPTY_DIRS, what);
        }
        let bind_mounts = self.bind_mounts(&raw.sandbox_bind_mounts);
        Runtime {
            bind_mounts,
            debug: raw.enable_debug,
            disable_guest_seccomp: raw.disable_guest_seccomp,
            guest_selinux_label: raw.guest_selinux_label,
            create_container_timeout: seconds(raw.create_container_timeout, 60),
            internetworking_model: model,
            forwards_ports: raw.enable_port_forward,
            static_resources: raw.static_sandbox_resource_mgmt,
            sandbox_cgroup_only: raw.sandbox_cgroup_only,
            pins_vcpus: raw.enable_vcpus_pinning,
            guest_empty_dirs: !raw.disable_guest_empty_dir,
            vfio_mode: raw.vfio_mode,
        }
    }

    /// Each is there, and of a name of its own.
    fn bind_mounts(&mut self, paths: &[String]) -> Vec<BindMount> {
        let mut names = HashSet::new();
        let mounts = paths.iter().map(|path| {
            let mount = BindMount::parse(path)?;
            if names.insert(mount.name.clone()) {
                return Ok(mount);
            }
            Err(format!("{path}: another one is called {:?}, too; guests see them by that name", mount.name))
        });
        let mounts: Vec<_> = mounts.collect();
        self.each(BIND_MOUNTS, mounts.into_iter())
    }

    /// Notes a problem, unless the key has one already: what follows from it is no news.
    fn problem(&mut self, key: &str, what: String) {
        if !self.report.doubts(key) {
            self.report.problems.push(Finding::key(self.tree.origin(key), key, what));
        }
    }

    /// Notes everything that is wrong with the items of one key.
    fn each<T>(&mut self, key: &str, items: impl Iterator<Item = Result<T, String>>) -> Vec<T> {
        let (mut good, mut wrong) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                Ok(item) => good.push(item),
                Err(what) => wrong.push(what),
            }
        }
        if !wrong.is_empty() {
            self.problem(key, wrong.join("; "));
        }
        good
    }

    fn warning(&mut self, key: &str, what: String) {
        self.report.warnings.push(Finding::key(self.tree.origin(key), key, what));
    }

    /// Whether a pod set the key, which the operator's keys then limit.
    fn is_annotated(&self, key: &str) -> bool {
        matches!(self.tree.origin(key), Origin::Annotation(_))
    }

    /// Whether the values of all these keys mean something.
    fn sound(&self, keys: &[&str]) -> bool {
        !keys.iter().any(|key| self.report.doubts(key))
    }
}

/// Whether a path is there: a drop-in cannot remove a key, so that an empty one counts as absent.
fn is_given(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

/// The words of a value that cannot be.
fn text(error: SpecError) -> String {
    error.to_string()
}

/// Kata takes 0 for "as if it were absent".
fn seconds(value: u32, otherwise: u64) -> Duration {
    Duration::from_secs(if value == 0 { otherwise } else { value.into() })
}
