//! What the host has, as far as a configuration depends on it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};
use vmm::VHOST_VSOCK;
use vmm::accelerator::{self, Choice};
use vmm::huge_pages;
use vmm::protection::{self, Available};
use vmm::spec::Accelerator;

/// Bits of an address of memory that QEMU's translator gives a guest.
pub(crate) const TRANSLATED_BITS: u32 = 40;

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
    /// Bits of an address of its memory.
    pub(crate) address_bits: u32,
    /// KiB of a huge page; 0 where it has none.
    pub(crate) huge_page_kib: u64,
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
            address_bits: address_bits(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            huge_page_kib: huge_pages::page_kib(),
            nodes: "/sys/devices/system/node".into(),
        }
    }
}

#[cfg(any(test, fuzzing))]
impl Host {
    /// One that has everything, whatever machine the tests run on; `nodes` is where it shows its NUMA nodes.
    pub(crate) fn rich(nodes: PathBuf) -> Self {
        let amd = protection::Amd { encrypted_state: true, snp: true };
        Self {
            cpus: 8,
            memory_mib: 16384,
            no_kvm: None,
            accelerator: Accelerator::Kvm,
            vhost_vsock: true,
            protection: Available { tdx: false, amd: Some(amd) },
            c_bit: Some(51),
            address_bits: 46,
            huge_page_kib: 2048,
            nodes,
        }
    }
}

/// As `/proc/cpuinfo` has them; where it has none, as many as QEMU's own processors.
fn address_bits(cpus: &str) -> u32 {
    let line = cpus.lines().find_map(|line| line.strip_prefix("address sizes"));
    let bits =
        line.and_then(|line| line.trim_start_matches(['\t', ' ', ':']).split(' ').next()?.parse().ok());
    bits.unwrap_or(TRANSLATED_BITS)
}

fn ask(variable: SysconfVar) -> u64 {
    sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_tells_how_much_memory_it_can_address() {
        let cpus = "processor\t: 0\naddress sizes\t: 46 bits physical, 48 bits virtual\n";
        assert_eq!(address_bits(cpus), 46);
        assert_eq!(address_bits("address sizes\t: many"), 40);
        assert_eq!(address_bits(""), 40);
    }
}
