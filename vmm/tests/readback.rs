//! What the real QEMU makes of a specification, read back from it over a second monitor.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod common;

use std::os::unix::fs::PermissionsExt;

use common::monitor::Machine;
use common::{Fixture, log};
use serde_json::json;
use vmm::spec::{Backing, EXTRA_MONITOR, PciPlaces, Window};
use vmm::{BootError, Hypervisor, Qemu};

#[tokio::test]
async fn a11_the_memory_is_shared_and_as_big_as_asked_for_and_prealloc_reserves_it() {
    for prealloc in [false, true] {
        let mut fixture = Fixture::new();
        fixture.spec.prealloc = prealloc;
        let mut machine = Machine::boot(fixture).await;
        let memory = machine.ask("query-memdev", json!({}))[0].take();
        assert_eq!(memory["id"], "memory0");
        assert_eq!(memory["size"], 256_u64 << 20);
        assert_eq!((&memory["share"], &memory["prealloc"]), (&json!(true), &json!(prealloc)));
        machine.end().await;
    }
}

#[tokio::test]
async fn a22_memory_in_a_directory_is_a_file_that_has_no_name() {
    let mut fixture = Fixture::new();
    let directory = fixture.dir.path().join("memory,share=off");
    std::fs::create_dir(&directory).unwrap();
    fixture.spec.backing = Backing::Directory(directory.clone());
    let mut machine = Machine::boot(fixture).await;
    let path = machine.ask("qom-get", json!({"path": "/objects/memory0", "property": "mem-path"}));
    assert_eq!(path, directory.to_str().unwrap());
    let shared = machine.ask("qom-get", json!({"path": "/objects/memory0", "property": "share"}));
    assert_eq!(shared, true);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    machine.end().await;
}

#[tokio::test]
async fn a11_huge_pages_the_host_does_not_have_are_told_before_anything_starts() {
    let mut fixture = Fixture::new();
    fixture.spec.backing = Backing::HugePages;
    // As much as no machine has reserved.
    fixture.spec.memory = vmm::spec::Memory::new(1 << 30, 4, 1 << 30).unwrap();
    let error = Qemu::new(log()).boot(fixture.spec.clone()).await.err().unwrap();
    assert!(matches!(error, BootError::HugePages { .. }), "{error}");
    assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
    fixture.assert_nothing_left();
}

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
        assert!(devices.iter().any(|(id, _)| *id == format!("rp{port}")), "{devices:?}");
    }
    let reserve = json!({"path": "/machine/peripheral/rp7", "property": "pref64-reserve"});
    assert_eq!(machine.ask("qom-get", reserve), 1 << 30);
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
async fn s_c3_a13_the_second_monitor_is_for_its_owner_alone_and_goes_with_the_machine() {
    let machine = Machine::boot(Fixture::new()).await;
    let socket = machine.fixture.spec.run_dir.join(EXTRA_MONITOR);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o077, 0);
    machine.end().await;
}
