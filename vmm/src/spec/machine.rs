//! Boards, and what can be had with each.

use std::collections::HashSet;

use super::VmSpec;
use super::{
    Accelerator, BlockDriver, Boot, Console, Firmware, ImageDriver, MachineOptions, Origin, PassThrough,
    Protection, ShareKind, SpecError, VirtioPci,
};
use crate::kernel_params;

/// Bytes of the guest kernel's buffer for its command line, its end included: `COMMAND_LINE_SIZE` of x86 and of ARM.
const COMMAND_LINE: usize = 2048;
/// Room for the rate of the guest's clock, which only the boot may know.
const TICKS: usize = 32;

/// The board QEMU emulates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// The PCI Express board of x86.
    Q35(MachineOptions),
    /// The board of ARM, which only QEMU's emulator of that processor has.
    Virt(MachineOptions),
    /// The board of x86 without PCI: quick to start, and as it is for good.
    Microvm(MachineOptions),
}

/// What a board has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// PCI: bridges, ports, and devices that come later.
    pub pci: bool,
    /// Processors that come later.
    pub cpu_hot_plug: bool,
    /// Memory that comes later, and devices that are memory.
    pub memory_devices: bool,
    /// An IOMMU that QEMU emulates as a device.
    pub iommu: bool,
    /// Flash memory for the firmware.
    pub flash: bool,
    /// NUMA nodes.
    pub numa: bool,
}

impl Machine {
    /// Further options of `-machine`.
    #[must_use]
    pub fn options(&self) -> &MachineOptions {
        match self {
            Machine::Q35(options) | Machine::Virt(options) | Machine::Microvm(options) => options,
        }
    }

    /// What can be had with the board.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        match self {
            Machine::Q35(_) => Capabilities {
                pci: true,
                cpu_hot_plug: true,
                memory_devices: true,
                iommu: true,
                flash: true,
                numa: true,
            },
            Machine::Virt(_) => Capabilities {
                pci: true,
                cpu_hot_plug: false,
                memory_devices: true,
                iommu: false,
                flash: true,
                numa: true,
            },
            Machine::Microvm(_) => Capabilities {
                pci: false,
                cpu_hot_plug: false,
                memory_devices: false,
                iommu: false,
                flash: false,
                numa: false,
            },
        }
    }

    /// How many devices the board has places for beside its own: slots of its root bus, or windows of memory for one
    /// virtio device each, of which a second interrupt controller has most.
    #[must_use]
    pub fn places(&self) -> u32 {
        match self {
            Machine::Q35(_) | Machine::Virt(_) => 30,
            Machine::Microvm(options) if options.switch("ioapic2") == Some(false) => 8,
            Machine::Microvm(_) => 24,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Machine::Q35(_) => "the board q35",
            Machine::Virt(_) => "the board virt",
            Machine::Microvm(_) => "the board microvm",
        }
    }
}

impl VmSpec {
    /// Checks what no single value can: whether the parts can be had together.
    ///
    /// # Errors
    /// [`SpecError::Clash`] with the first two that cannot; other [`SpecError`]s for more than there is room for.
    pub fn check(&self) -> Result<(), SpecError> {
        let can = self.machine.capabilities();
        let clashes = [
            (!can.iommu && self.iommu, "an IOMMU"),
            (!can.cpu_hot_plug && self.vcpus.boot() < self.vcpus.max(), "more virtual CPUs later"),
            (!can.memory_devices && self.memory.growth().is_some(), "more memory later"),
            (
                !can.memory_devices && self.has_memory_devices(),
                "an image or room for devices that are memory",
            ),
            (
                !can.pci && self.pci.bridges() + self.pci.root_ports() + self.pci.switch_ports() > 0,
                "a place for PCI devices",
            ),
            (!can.pci && self.pass_through != PassThrough::Never, "devices of the host"),
            (!can.pci && self.virtio != VirtioPci::Usual, "virtio devices other than usual"),
            (!can.numa && self.numa.is_some(), "NUMA nodes"),
            (self.panic_dump.is_some() && !can.pci, "a device that tells of a panic"),
            (self.sgx_epc.is_some() && !matches!(self.machine, Machine::Q35(_)), "SGX memory"),
            (!can.flash && matches!(self.firmware, Firmware::Flash { .. }), "firmware in flash memory"),
        ];
        let against = self.against_template().filter(|_| self.origin != Origin::Boot);
        against.map_or(Ok(()), |what| Err(SpecError::Clash { what, with: "a template" }))?;
        let within = self.numa_clash().or_else(|| self.protection_clash());
        let within = within.or_else(|| self.sgx_clash()).or_else(|| self.rootless_clash());
        within.map_or(Ok(()), |(what, with)| Err(SpecError::Clash { what, with }))?;
        let (asked, most) = (self.root_bus_slots(), self.machine.places());
        if asked > most {
            return Err(SpecError::Places { asked, most });
        }
        self.extensions_differ()?;
        self.check_kernel_line()?;
        let clash = clashes.into_iter().find(|(clash, _)| *clash);
        clash.map_or(Ok(()), |(_, what)| Err(SpecError::Clash { what, with: self.machine.name() }))?;
        self.seats().map(drop)
    }

    /// Checks that the guest's kernel reads all of its command line, which is made of much of the specification.
    ///
    /// # Errors
    /// [`SpecError::CommandLine`] if it would not.
    pub fn check_kernel_line(&self) -> Result<(), SpecError> {
        let line = kernel_params::command_line(self, None).len() + TICKS;
        if line < COMMAND_LINE { Ok(()) } else { Err(SpecError::CommandLine(line)) }
    }

    /// How many of [`Machine::places`] are taken from the start.
    pub(crate) fn root_bus_slots(&self) -> u32 {
        let places = self.pci.bridges() + self.pci.root_ports() + u32::from(self.pci.switch_ports() > 0);
        let image =
            matches!(self.boot, Boot::Image { driver: ImageDriver::VirtioBlk | ImageDriver::VirtioPmem, .. });
        let devices = [
            // Random numbers and vsock are always there.
            true,
            true,
            self.console == Console::Virtio,
            self.block.driver == BlockDriver::VirtioScsi,
            image,
            self.share.is_some(),
            self.has_balloon(),
            self.virtio_mem().is_some(),
            self.panic_dump.is_some() && matches!(self.machine, Machine::Virt(_)),
            self.machine.options().switch("usb") == Some(true),
            // Ports for what comes once the state is there. One takes the slot of the vsock that is not there before.
            self.origin != Origin::Boot,
        ];
        let devices = devices.map(u32::from).iter().sum::<u32>();
        // No list is longer than memory.
        places
            + devices
            + self.nics.len() as u32
            + self.vhost_user.len() as u32
            + self.extensions.len() as u32
    }

    fn extensions_differ(&self) -> Result<(), SpecError> {
        let mut names = HashSet::new();
        match self.extensions.iter().find(|extension| !names.insert(&extension.name)) {
            Some(twice) => Err(SpecError::ExtensionTwice(twice.name.to_string())),
            None => Ok(()),
        }
    }

    /// Nodes are divided among what the machine starts with.
    fn numa_clash(&self) -> Option<(&'static str, &'static str)> {
        let nodes = self.numa.as_ref()?.count();
        if self.vcpus.boot() < self.vcpus.max() {
            return Some(("more virtual CPUs later", "NUMA nodes"));
        }
        (self.memory.mib() < nodes).then_some(("so little memory", "so many NUMA nodes"))
    }

    /// The guest is measured as it starts, and its memory stays where it is.
    fn protection_clash(&self) -> Option<(&'static str, &'static str)> {
        let firmware_fits = match self.protection.as_ref()? {
            Protection::Sev { .. } => matches!(self.firmware, Firmware::Flash { variables: None, .. }),
            Protection::Tdx { .. } | Protection::Snp { .. } => matches!(self.firmware, Firmware::Bios(_)),
        };
        let clashes = [
            (self.accelerator != Accelerator::Kvm, "TCG"),
            (!matches!(self.machine, Machine::Q35(_)), "a board other than q35"),
            (!firmware_fits, "firmware that is QEMU's own or in the wrong kind of memory"),
            (self.vcpus.boot() < self.vcpus.max(), "more virtual CPUs later"),
            (self.memory.growth().is_some(), "more memory later"),
            (self.has_memory_devices(), "an image or room for devices that are memory"),
            (self.virtio == VirtioPci::Legacy, "the old interface of virtio devices"),
            (self.reclaim_freed_memory, "memory that is given back"),
            (self.iommu, "an IOMMU"),
        ];
        clashes.into_iter().find(|(clash, _)| *clash).map(|(_, what)| (what, "protected memory"))
    }

    fn sgx_clash(&self) -> Option<(&'static str, &'static str)> {
        let translated = self.accelerator != Accelerator::Kvm;
        (self.sgx_epc.is_some() && translated).then_some(("SGX memory", "TCG"))
    }

    /// Files of a share are the containers' users', whom no single other user can serve them for.
    fn rootless_clash(&self) -> Option<(&'static str, &'static str)> {
        let by_9p = matches!(&self.share, Some(share) if share.kind == ShareKind::Virtio9p);
        let clashes = [
            (by_9p, "a share by virtio-9p, which QEMU serves itself,"),
            // Their files are the root's, and so is the right to keep all of a guest's memory where it is.
            (self.pass_through != PassThrough::Never, "devices of the host"),
        ];
        let clash = clashes.into_iter().find(|(clash, _)| self.rootless && *clash);
        clash.map(|(_, what)| (what, "rootless"))
    }

    /// Whether the board knows of NVDIMMs.
    pub(crate) fn has_nvdimms(&self) -> bool {
        let image = matches!(self.boot, Boot::Image { driver: ImageDriver::Nvdimm, .. });
        image || self.block.driver == BlockDriver::Nvdimm
    }

    fn has_memory_devices(&self) -> bool {
        let image =
            matches!(self.boot, Boot::Image { driver: ImageDriver::Nvdimm | ImageDriver::VirtioPmem, .. });
        image || self.block.driver == BlockDriver::Nvdimm || self.memory.room_mib() > 0
    }
}
