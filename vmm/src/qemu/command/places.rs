//! Places for PCI devices that come later.

use super::Line;
use crate::device::Device;
use crate::spec::{FIRST_BRIDGE, FIRST_ROOT_PORT, PciPlaces, Window};

const ROOT_BUS: &str = "pcie.0";
/// The bus inside a switch.
const SWITCH: &str = "swup0";

/// Before every other device: those have no place of their own and take the first that is free.
pub(super) fn places(line: &mut Line, pci: PciPlaces) {
    for number in 0..pci.bridges() {
        line.device(&Device::PciBridge {
            id: format!("pci-bridge-{number}"),
            bus: ROOT_BUS,
            addr: format!("{:x}", u32::from(FIRST_BRIDGE) + number),
            chassis_nr: number + 1,
            shpc: false,
            io_reserve: 4 << 10,
            mem_reserve: 1 << 20,
            pref64_reserve: 1 << 20,
        });
    }
    for number in 0..pci.root_ports() {
        root_port(line, number, pci.window());
    }
    switch(line, pci);
}

fn root_port(line: &mut Line, number: u32, window: Window) {
    line.device(&Device::PcieRootPort {
        id: format!("rp{number}"),
        bus: ROOT_BUS,
        addr: format!("{:x}", u32::from(FIRST_ROOT_PORT) + number),
        chassis: 0,
        slot: number,
        mem_reserve: window.mem,
        pref64_reserve: window.pref64,
    });
}

/// A switch is behind a root port of its own, the one after those for devices.
fn switch(line: &mut Line, pci: PciPlaces) {
    let (ports, number) = (pci.switch_ports(), pci.root_ports());
    if ports == 0 {
        return;
    }
    root_port(line, number, pci.window().times(ports));
    line.device(&Device::UpstreamPort { id: SWITCH, bus: format!("rp{number}") });
    for slot in 0..ports {
        line.device(&Device::DownstreamPort { id: format!("swdp{slot}"), bus: SWITCH, chassis: 1, slot });
    }
}
