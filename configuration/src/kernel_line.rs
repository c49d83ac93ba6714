//! The command line of the guest's kernel.

use vmm::VmSpec;
use vmm::spec::{Console, KernelParam, SpecError, Vcpus, VmName, VmUuid};

use crate::agent::Agent;
use crate::hypervisor::Hypervisor;

/// What the agent and the guest's security need of it, then the operator's own words, which win.
pub(crate) fn words(hypervisor: &Hypervisor, agent: &Agent) -> Vec<KernelParam> {
    let debug = agent.debug.then_some("agent.log=debug");
    let console: &[&str] =
        if agent.debug_console { &["agent.debug_console", "agent.debug_console_vport=1026"] } else { &[] };
    let selinux = (!hypervisor.disable_guest_selinux).then_some("selinux=1");
    let own = debug.into_iter().chain(console.iter().copied()).chain(selinux);
    let own = own.filter_map(|word| KernelParam::new(word).ok());
    own.chain(hypervisor.kernel_params.iter().cloned()).collect()
}

/// Checks that the kernel reads all of it. No machine of this configuration has a longer one.
pub(crate) fn check(hypervisor: &Hypervisor, agent: &Agent) -> Result<(), SpecError> {
    let (name, uuid) = (VmName::new("any")?, VmUuid::new("00000000-0000-4000-8000-000000000000")?);
    let (qemu, kernel) = (hypervisor.path.clone(), hypervisor.kernel.clone());
    let plain = VmSpec::plain(name, uuid, "/".into(), qemu, kernel, hypervisor.boot.clone())?;
    let spec = VmSpec {
        machine: hypervisor.machine.clone(),
        vcpus: Vcpus::new(hypervisor.default_vcpus, hypervisor.default_maxvcpus)?,
        iommu: hypervisor.enable_iommu,
        block: hypervisor.block.clone(),
        extensions: hypervisor.extension_images.clone(),
        kernel_params: words(hypervisor, agent),
        console: if hypervisor.use_legacy_serial { Console::Serial } else { Console::Virtio },
        debug: hypervisor.enable_debug,
        ..plain
    };
    spec.check_kernel_line()
}
