//! Places for devices that come later.

use vmm::spec::{Boot, ImageDriver, MachineOptions};

use super::Checker;
use crate::choice::MachineType;
use crate::raw::RawHypervisor;

const BRIDGES: &str = "hypervisor.qemu.default_bridges";
const ROOT_PORTS: &str = "hypervisor.qemu.pcie_root_port";
const SWITCH_PORTS: &str = "hypervisor.qemu.pcie_switch_port";
const EXTENSIONS: &str = "hypervisor.qemu.guest_extension_images";

/// How many there are of each kind.
pub(super) struct Places {
    pub(super) bridges: u32,
    pub(super) root_ports: u32,
    pub(super) switch_ports: u32,
}

impl Checker<'_> {
    /// Those that are asked for, beside so many extension images and what the guest starts from.
    pub(super) fn places(&mut self, raw: &RawHypervisor, images: usize, boot: Option<&Boot>) -> Places {
        let bridges = self.at_most(BRIDGES, raw.default_bridges, 5);
        let root_ports = self.at_most(ROOT_PORTS, raw.pcie_root_port, 16);
        let switch_ports = self.at_most(SWITCH_PORTS, raw.pcie_switch_port, 16);
        self.root_bus(raw, [bridges, root_ports, switch_ports.min(1)], images, boot);
        Places { bridges, root_ports, switch_ports }
    }

    /// Kata takes a larger number for the largest, so a file of its may have one.
    fn at_most(&mut self, key: &'static str, asked: u32, most: u32) -> u32 {
        if asked > most && self.is_annotated(key) {
            self.problem(
                key,
                format!("{asked} is more than the {most} that the board has room for; ask for at most that"),
            );
        } else if asked > most {
            self.warning(key, format!("{asked} is more than the board has room for; {most} is used"));
        }
        asked.min(most)
    }

    /// The slots of the root bus that places, images and the machine's own devices share, as [`vmm::VmSpec`] counts them.
    fn root_bus(&mut self, raw: &RawHypervisor, places: [u32; 3], images: usize, boot: Option<&Boot>) {
        const SLOTS: usize = 30;
        let is_disk = matches!(boot, Some(Boot::Image { driver, .. }) if *driver != ImageDriver::Nvdimm);
        // Random numbers, vsock and the share are always there.
        let own = [
            true,
            true,
            true,
            !raw.use_legacy_serial,
            is_disk,
            raw.reclaim_guest_freed_memory,
            raw.enable_virtio_mem,
            MachineOptions::parse(&raw.machine_accelerators).is_ok_and(|options| options.usb()),
        ];
        let own = own.into_iter().filter(|is_there| *is_there).count();
        let asked = places.iter().sum::<u32>() as usize + images;
        let has_bus = raw.machine_type != MachineType::Microvm;
        if has_bus && asked + own > SLOTS && self.sound(&[ROOT_PORTS, EXTENSIONS]) {
            let room = SLOTS - own;
            let what = format!(
                "bridges, root ports, a switch and extension images are {asked}, and the board has room for {room}: \
                 lower {BRIDGES} or this, or take away images"
            );
            self.problem(ROOT_PORTS, what);
        }
    }
}
