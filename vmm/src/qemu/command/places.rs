//! Places for PCI devices that come later.

use super::Line;
use crate::device::Device;
use crate::spec::{FIRST_BRIDGE, FIRST_ROOT_PORT, PciPlaces, Window};

const ROOT_BUS: &str = "pcie.0";
/// The port of the share, where it comes late too.
pub(crate) const SHARE_PORT: LatePort = LatePort { id: "late0", slot: 29 };
/// The port of the vsock.
pub(crate) const VSOCK_PORT: LatePort = LatePort { id: "late1", slot: 30 };
const LATE_PORTS: [LatePort; 2] = [SHARE_PORT, VSOCK_PORT];

/// A root port that has one device in its time.
pub(crate) struct LatePort {
    pub(crate) id: &'static str,
    /// Of the root bus, behind all others.
    slot: u8,
}

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

/// Ports for what a copy of a template gets once it has the template's state.
pub(super) fn late_ports(line: &mut Line) {
    let Window { mem, pref64 } = Window::default();
    for port in LATE_PORTS {
        line.device(&Device::PcieRootPort {
            id: port.id.to_owned(),
            bus: ROOT_BUS,
            addr: format!("{:x}", port.slot),
            chassis: 0,
            slot: port.slot.into(),
            mem_reserve: mem,
            pref64_reserve: pref64,
        });
    }
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
