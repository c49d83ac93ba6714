//! `[factory]`, or `[hypervisor.qemu.factory]`: virtual machines made ahead of time.

use super::{Key, flag, integer, text};

/// Each takes a guest's memory.
const MOST_CACHED: i64 = 1000;

pub(crate) const CACHE: &str = "/var/run/kata-containers/cache.sock";
pub(crate) const TEMPLATES: &str = "/run/vc/vm/template";

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    flag("enable_template", false, "start virtual machines as copies of one that is saved after its boot"),
    text("template_path", TEMPLATES, "directory for such machines, on the host's fastest file system; only root may write to it"),
    integer("vm_cache_number", 0, MOST_CACHED, "virtual machines that `factory init` keeps ready"),
    text("vm_cache_endpoint", CACHE, "socket of that process; only root may make files in its directory"),
];
