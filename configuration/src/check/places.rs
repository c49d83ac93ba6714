//! Places for devices that come later.

use vmm::spec::{Boot, ImageDriver, Machine};

use super::Checker;
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
    /// Those that are asked for, beside extension images and what the guest starts from.
    pub(super) fn places(&mut self, raw: &RawHypervisor, machine: &Machine, boot: Option<&Boot>) -> Places {
        let bridges = self.at_most(BRIDGES, raw.default_bridges, 5);
        let root_ports = self.at_most(ROOT_PORTS, raw.pcie_root_port, 16);
        let switch_ports = self.at_most(SWITCH_PORTS, raw.pcie_switch_port, 16);
        self.fit(raw, machine, [bridges, root_ports, switch_ports.min(1)], boot);
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

    /// The places of the board that these, images and the machine's own devices share, as [`vmm::VmSpec`] counts them.
    fn fit(&mut self, raw: &RawHypervisor, machine: &Machine, places: [u32; 3], boot: Option<&Boot>) {
        let can = machine.capabilities();
        let is_disk = matches!(boot, Some(Boot::Image { driver, .. }) if *driver != ImageDriver::Nvdimm);
        // Random numbers, vsock and the share are always there.
        let own = [
            true,
            true,
            true,
            !raw.use_legacy_serial,
            is_disk,
            raw.reclaim_guest_freed_memory,
            raw.enable_virtio_mem && can.memory_devices,
            machine.options().switch("usb") == Some(true),
        ];
        let own = own.into_iter().filter(|is_there| *is_there).count();
        // Whatever else is wrong with images, they are as many.
        let (images, all) = (raw.guest_extension_images.len(), machine.places() as usize);
        let (places, room) = (if can.pci { places.iter().sum() } else { 0 }, all - own);
        if places as usize + images <= room || !self.sound(&[ROOT_PORTS]) {
            return;
        }
        let (key, remedy) = if can.pci {
            (ROOT_PORTS, format!("lower {BRIDGES} or this, or take away images"))
        } else {
            (EXTENSIONS, "take some away".to_owned())
        };
        let what = format!(
            "bridges, root ports, a switch and extension images are {}, and the board has room for {room}: {remedy}",
            places as usize + images
        );
        self.problem(key, what);
    }
}
