//! Places for PCI devices, and what stands before them.

use serde_json::json;
use vmm::spec::{PanicDump, PciPlaces, Window};

use crate::Machine;
use crate::common::Fixture;

/// The devices on the root bus, by the ids they were given, with their slots.
fn on_root_bus(machine: &mut Machine) -> Vec<(String, u64)> {
    let buses = machine.ask("query-pci", json!({}));
    let devices = buses[0]["devices"].as_array().unwrap().clone();
    let named = devices.iter().map(|device| {
        (device["qdev_id"].as_str().unwrap_or_default().to_owned(), device["slot"].as_u64().unwrap())
    });
    named.filter(|(id, _)| !id.is_empty()).collect()
}

#[tokio::test]
async fn a15_a30_bridges_and_root_ports_are_where_later_devices_look_for_them() {
    let mut fixture = Fixture::new();
    let window = Window { mem: 4 << 20, pref64: 1 << 30 };
    fixture.spec.pci = PciPlaces::new(5, 16, window).unwrap();
    let mut machine = Machine::boot(fixture).await;
    let devices = on_root_bus(&mut machine);
    for bridge in 0..5_u64 {
        assert!(devices.contains(&(format!("pci-bridge-{bridge}"), 2 + bridge)), "{devices:?}");
    }
    for port in 0..16 {
        assert!(devices.contains(&(format!("rp{port}"), 7 + port)), "{devices:?}");
    }
    for (device, property, wanted) in [
        ("rp7", "mem-reserve", json!(4 << 20)),
        ("rp7", "pref64-reserve", json!(1 << 30)),
        ("rp7", "slot", json!(7)),
        ("pci-bridge-4", "chassis_nr", json!(5)),
        ("pci-bridge-4", "shpc", json!(false)),
        ("pci-bridge-4", "io-reserve", json!(4 << 10)),
        ("pci-bridge-4", "mem-reserve", json!(1 << 20)),
        ("pci-bridge-4", "pref64-reserve", json!(1 << 20)),
    ] {
        let path = format!("/machine/peripheral/{device}");
        assert_eq!(machine.property(&path, property), wanted, "{device} {property}");
    }
    machine.end().await;
}

#[tokio::test]
async fn a18_an_iommu_remaps_interrupts() {
    let mut fixture = Fixture::new();
    fixture.spec.iommu = true;
    let mut machine = Machine::boot(fixture).await;
    for (property, wanted) in
        [("intremap", json!("on")), ("device-iotlb", json!(true)), ("caching-mode", json!(true))]
    {
        let asked = json!({"path": "/machine/peripheral/iommu0", "property": property});
        assert_eq!(machine.ask("qom-get", asked), wanted, "{property}");
    }
    machine.end().await;
}

#[tokio::test]
async fn a30_a_switch_has_a_bus_for_each_of_its_ports() {
    let mut fixture = Fixture::new();
    fixture.spec.pci = PciPlaces::new(1, 2, Window::default()).unwrap().with_switch(4).unwrap();
    let mut machine = Machine::boot(fixture).await;
    assert_eq!(machine.property("/machine/peripheral/swup0", "parent_bus"), "/machine/peripheral/rp2/rp2");
    for port in 0..4 {
        let device = format!("/machine/peripheral/swdp{port}");
        assert_eq!(machine.property(&device, "parent_bus"), "/machine/peripheral/swup0/swup0");
        assert_eq!(machine.property(&device, "slot"), port);
    }
    machine.end().await;
}

#[tokio::test]
async fn a19_a_machine_has_a_device_that_tells_of_a_panic() {
    let mut fixture = Fixture::new();
    let directory = fixture.dir.path().join("dumps");
    fixture.spec.panic_dump = Some(PanicDump { directory, paging: false });
    let mut machine = Machine::boot(fixture).await;
    assert_eq!(machine.property("/machine/peripheral/pvpanic0", "type"), "pvpanic");
    machine.end().await;
}
