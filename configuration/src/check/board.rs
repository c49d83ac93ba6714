//! The board, and what it has a place for.

use vmm::spec::{CpuFeatures, Machine, MachineOptions};

use super::{Checker, is_given, text};
use crate::choice::MachineType;
use crate::host::TRANSLATED_BITS;
use crate::raw::RawHypervisor;

const MACHINE: &str = "hypervisor.qemu.machine_type";
const FEATURES: &str = "hypervisor.qemu.cpu_features";
const OPTIONS: &str = "hypervisor.qemu.machine_accelerators";

impl Checker<'_> {
    pub(super) fn machine(&mut self, raw: &RawHypervisor) -> Machine {
        let options = self.note(OPTIONS, MachineOptions::parse(&raw.machine_accelerators).map_err(text));
        self.address_bits(raw);
        if raw.machine_type == MachineType::Virt && !cfg!(target_arch = "aarch64") {
            let what = "virt is a board of ARM; on this processor there are q35 and microvm";
            self.problem(MACHINE, what.to_owned());
        }
        let options = options.unwrap_or_default();
        let machine = match raw.machine_type {
            MachineType::Q35 => Machine::Q35(options),
            MachineType::Virt => Machine::Virt(options),
            MachineType::Microvm => Machine::Microvm(options),
        };
        self.fits(&machine, raw);
        self.irqchip(&machine, raw);
        self.changes_nothing(&machine, raw);
        machine
    }

    /// QEMU's translator has processors of one size only.
    fn address_bits(&mut self, raw: &RawHypervisor) {
        let bits = CpuFeatures::parse(&raw.cpu_features).ok().and_then(|features| features.address_bits());
        let range = if self.translated(raw) { TRANSLATED_BITS..=TRANSLATED_BITS } else { 32..=52 };
        if let Some(bits) = bits.filter(|bits| !range.contains(bits)) {
            let (from, to) = range.into_inner();
            let what =
                format!("phys-bits={bits} is not within {from} and {to}, as QEMU needs it; leave it out");
            self.problem(FEATURES, what);
        }
    }

    /// An IOMMU that remaps interrupts has half of the interrupt controller in QEMU, where KVM would have it.
    fn irqchip(&mut self, machine: &Machine, raw: &RawHypervisor) {
        let told = machine.options().value("kernel-irqchip").filter(|told| *told != "split");
        if let Some(told) = told.filter(|_| raw.enable_iommu && !self.translated(raw)) {
            let what =
                format!("kernel_irqchip={told} goes without enable_iommu, which needs split; leave it out");
            self.problem(OPTIONS, what);
        }
    }

    /// Numbers, such as that of bridges, are for a board that has such a thing; a switch asks for it.
    fn fits(&mut self, machine: &Machine, raw: &RawHypervisor) {
        let can = machine.capabilities();
        let port = |word: &str| !["", "no-port"].contains(&word);
        let flash = "flash memory for firmware";
        for (has, asked, key, what) in [
            (can.iommu, raw.enable_iommu, "enable_iommu", "IOMMU"),
            (can.pci, raw.enable_iommu_platform, "enable_iommu_platform", "IOMMU"),
            (can.numa, raw.enable_numa, "enable_numa", "NUMA nodes"),
            (can.flash, raw.pflashes.iter().any(|path| is_given(path)), "pflashes", flash),
            (can.flash, is_given(&raw.firmware_volume), "firmware_volume", flash),
            (
                can.pci,
                raw.hotplug_vfio_on_root_bus,
                "hotplug_vfio_on_root_bus",
                "place for devices of the host",
            ),
            (can.pci, port(&raw.hot_plug_vfio), "hot_plug_vfio", "place for devices of the host"),
            (can.pci, port(&raw.cold_plug_vfio), "cold_plug_vfio", "place for devices of the host"),
            (
                can.pci,
                is_given(&raw.guest_memory_dump_path),
                "guest_memory_dump_path",
                "device that tells of a panic",
            ),
            (
                can.memory_devices,
                raw.block_device_driver == "nvdimm",
                "block_device_driver",
                "place for devices that are memory",
            ),
        ] {
            if asked && !has {
                let word = raw.machine_type.word();
                let what = format!("the board {word} has no {what}; unset this, or choose another {MACHINE}");
                self.problem(&format!("hypervisor.qemu.{key}"), what);
            }
        }
    }
}
