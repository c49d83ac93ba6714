//! Places for PCI devices that come later.

use super::Line;
use crate::device::Device;
use crate::spec::{PciPlaces, Window};

const ROOT_BUS: &str = "pcie.0";
/// Where bridges begin on the root bus. The agents in the field find a device by its bridge's slot.
const FIRST_BRIDGE: u32 = 2;

/// Before every other device: those have no place of their own and take the first that is free.
pub(super) fn places(line: &mut Line, pci: PciPlaces) {
    for number in 0..pci.bridges() {
        line.device(&Device::PciBridge {
            id: format!("pci-bridge-{number}"),
            bus: ROOT_BUS,
            addr: format!("{:x}", FIRST_BRIDGE + number),
            chassis_nr: number + 1,
            shpc: false,
            io_reserve: 4 << 10,
            mem_reserve: 1 << 20,
            pref64_reserve: 1 << 20,
        });
    }
    let Window { mem, pref64 } = pci.window();
    for number in 0..pci.root_ports() {
        line.device(&Device::PcieRootPort {
            id: format!("rp{number}"),
            bus: ROOT_BUS,
            chassis: 0,
            slot: number,
            mem_reserve: mem,
            pref64_reserve: pref64,
        });
    }
}
