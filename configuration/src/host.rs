//! What the host has, as far as a configuration depends on it.

use std::path::{Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};
use vmm::VHOST_VSOCK;
use vmm::accelerator::{self, Choice};
use vmm::protection::{self, Available};
use vmm::spec::Accelerator;

/// The host's size, and which of its devices there are.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
    /// Why KVM cannot be had, if it cannot.
    pub(crate) no_kvm: Option<String>,
    /// What `accelerator = "auto"` means here.
    pub(crate) accelerator: Accelerator,
    pub(crate) vhost_vsock: bool,
    /// What it can protect a guest's memory with, and the bit of an address that says so.
    pub(crate) protection: Available,
    pub(crate) c_bit: Option<u32>,
    /// Where the kernel shows its NUMA nodes.
    pub(crate) nodes: PathBuf,
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
            no_kvm: accelerator::detect(Choice::Kvm).err().map(|why| why.to_string()),
            accelerator: accelerator::detect(Choice::Auto)
                .map_or(Accelerator::Tcg, |found| found.accelerator),
            vhost_vsock: Path::new(VHOST_VSOCK).exists(),
            protection: protection::detect(Path::new("/")),
            c_bit: protection::c_bit(),
            nodes: "/sys/devices/system/node".into(),
        }
    }
}

fn ask(variable: SysconfVar) -> u64 {
    sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
}
