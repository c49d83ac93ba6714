//! Devices of the host that a machine starts with.

use super::*;
use crate::vfio::HostDevice;
use crate::vfio::tests::Sysfs;

/// Two devices of PCI Express and one of conventional PCI, which are in two groups.
fn three() -> Vec<HostDevice> {
    let sysfs = Sysfs::new();
    sysfs.pci("0000:01:00.0", 1, "vfio-pci", "0x030200", 4096);
    sysfs.pci("0000:01:00.1", 1, "vfio-pci", "0x040300", 4096);
    sysfs.pci("0000:05:00.0", 2, "vfio-pci", "0x020000", 256);
    let mut devices = sysfs.find("0000:01:00.0").unwrap();
    devices.extend(sysfs.find("0000:05:00.0").unwrap());
    devices
}

fn with(port: VfioPort, devices: Vec<HostDevice>) -> VmSpec {
    let window = Window { mem: 4 << 20, pref64: 4 << 20 };
    let pci = PciPlaces::new(1, 2, window).unwrap().with_switch(2).unwrap();
    VmSpec { pci, pass_through: PassThrough::Cold { devices, port }, ..spec() }
}

fn places(spec: &VmSpec) -> Vec<String> {
    let lines = lines(spec, &inherited());
    let devices =
        lines.iter().filter_map(|line| line.strip_prefix(r#"-device {"driver":"vfio-pci","id":"vfio"#));
    devices.map(str::to_owned).collect()
}

fn found(spec: &VmSpec) -> Vec<String> {
    spec.check().unwrap();
    spec.passed_through().unwrap().iter().map(|device| format!("{} {}", device.id, device.at)).collect()
}

#[test]
fn b11_b18_devices_are_at_the_ports_from_the_start() {
    let spec = with(VfioPort::Root, three());
    assert_eq!(
        places(&spec),
        [
            r#"0","host":"0000:01:00.0","romfile":"","bus":"rp0","addr":"0"}"#,
            r#"1","host":"0000:01:00.1","romfile":"","bus":"rp1","addr":"0"}"#,
            r#"2","host":"0000:05:00.0","romfile":"","bus":"pci-bridge-0","addr":"1"}"#,
        ]
    );
    assert_eq!(found(&spec), ["vfio0 07/00", "vfio1 08/00", "vfio2 02/01"]);
}

#[test]
fn b11_b18_devices_are_at_the_switch_or_the_bridge_if_they_are_to_be() {
    let spec = with(VfioPort::Switch, three());
    assert!(places(&spec)[1].ends_with(r#""bus":"swdp1","addr":"0"}"#));
    assert_eq!(found(&spec), ["vfio0 09/00/00/00", "vfio1 09/00/01/00", "vfio2 02/01"]);
    let spec = with(VfioPort::Bridge, three());
    assert_eq!(found(&spec), ["vfio0 02/01", "vfio1 02/02", "vfio2 02/03"]);
}

#[test]
fn b11_a_board_without_pci_has_no_place_for_devices_of_the_host() {
    let machine = Machine::Microvm(MachineOptions::default());
    let spec = VmSpec { machine, pass_through: PassThrough::Hot(VfioPort::Root), ..spec() };
    let spec = VmSpec { vcpus: Vcpus::new(1, 1).unwrap(), memory: Memory::new(512, 0, 512).unwrap(), ..spec };
    let refused = spec.check().unwrap_err().to_string();
    assert_eq!(refused, "devices of the host cannot be had with the board microvm");
}

#[test]
fn b11_devices_without_a_place_and_the_same_one_twice_make_no_machine() {
    let devices = [three(), three()].concat();
    let refused = |devices| with(VfioPort::Root, devices).check().unwrap_err().to_string();
    assert_eq!(refused(devices), "0000:01:00.0 is to be in the guest twice");
    let sysfs = Sysfs::new();
    for function in 0..3 {
        sysfs.pci(&format!("0000:01:00.{function}"), 1, "vfio-pci", "0x030200", 4096);
    }
    assert_eq!(
        refused(sysfs.find("0000:01:00.0").unwrap()),
        "0000:01:00.2 is to be in the guest, and the machine has no free PCI Express root port: raise pcie_root_port"
    );
}
