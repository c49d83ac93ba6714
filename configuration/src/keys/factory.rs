//! `[factory]`, or `[hypervisor.qemu.factory]`: virtual machines made ahead of time.

use super::{Key, U32, flag, integer, text};

pub(crate) const TEMPLATES: &str = "/run/vc/vm/template";

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    flag("enable_template", false, "start virtual machines as copies of one that is saved after its boot"),
    text("template_path", TEMPLATES, "directory for such machines, on the host's fastest file system; only root may write to it"),
    integer("vm_cache_number", 0, U32, "virtual machines kept ready").later(),
    text("vm_cache_endpoint", "/var/run/kata-containers/cache.sock", "socket of the process that keeps them").later(),
];
