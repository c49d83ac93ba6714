//! How virtio devices present themselves.

use std::fs;

use configuration::Hypervisor;
use vmm::spec::{Accelerator, Capabilities, VirtioPci};

/// An IOMMU knows nothing of the old interface, so it comes first; the translator gains nothing by it.
pub(super) fn of(hypervisor: &Hypervisor, accelerator: Accelerator, board: Capabilities) -> VirtioPci {
    let nested = || fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| in_a_virtual_machine(&cpus));
    where_nested(hypervisor, accelerator, board, nested)
}

/// The same for a host that is a virtual machine itself, or not.
pub(super) fn where_nested(
    hypervisor: &Hypervisor,
    accelerator: Accelerator,
    board: Capabilities,
    nested: impl FnOnce() -> bool,
) -> VirtioPci {
    let has_legacy = board.pci && hypervisor.protection.is_none();
    if hypervisor.enable_iommu_platform {
        VirtioPci::BehindIommu
    } else if has_legacy && accelerator == Accelerator::Kvm && !hypervisor.disable_nesting_checks && nested()
    {
        VirtioPci::Legacy
    } else {
        VirtioPci::Usual
    }
}

fn in_a_virtual_machine(cpus: &str) -> bool {
    let flags = cpus.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a7_a_processor_flag_tells_of_a_hypervisor_below() {
        assert!(in_a_virtual_machine("processor: 0\nflags\t\t: fpu hypervisor lahf_lm\n"));
        assert!(!in_a_virtual_machine("model name: hypervisor\nflags\t\t: fpu vmx\nvmx flags: hypervisor\n"));
        assert!(!in_a_virtual_machine(""));
    }
}
