//! What the host has, as far as a configuration depends on it.

use nix::unistd::{SysconfVar, sysconf};

/// The host's size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
}

impl Host {
    /// The machine this runs on. CPUs are those online, whatever quota the shim itself runs under: QEMU may be
    /// placed in another cgroup.
    pub(crate) fn this() -> Self {
        let pages = ask(SysconfVar::_PHYS_PAGES);
        let page_size = ask(SysconfVar::PAGE_SIZE);
        Self {
            cpus: u32::try_from(ask(SysconfVar::_NPROCESSORS_ONLN)).unwrap_or(u32::MAX).max(1),
            memory_mib: pages.saturating_mul(page_size) >> 20,
        }
    }
}

fn ask(variable: SysconfVar) -> u64 {
    sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
}
