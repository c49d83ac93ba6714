//! How virtio devices present themselves.

use serde_json::{Value, json};
use vmm::spec::{Console, VirtioPci};

use crate::Machine;
use crate::common::Fixture;

async fn boot(virtio: VirtioPci, iommu: bool) -> Machine {
    let mut fixture = Fixture::new();
    fixture.spec.virtio = virtio;
    fixture.spec.iommu = iommu;
    fixture.spec.reclaim_freed_memory = true;
    fixture.spec.console = Console::Virtio;
    Machine::boot(fixture).await
}

fn property(machine: &mut Machine, device: &str, property: &str) -> Value {
    machine.property(&format!("/machine/peripheral/{device}"), property)
}

const ALL: [&str; 5] = ["serial0", "virtio-rng0", "scsi0", "balloon0", "fs0"];

#[tokio::test]
async fn a7_devices_use_the_old_interface_where_the_host_is_a_virtual_machine() {
    let mut machine = boot(VirtioPci::Legacy, false).await;
    for device in ALL {
        assert_eq!(property(&mut machine, device, "disable-modern"), true, "{device}");
    }
    machine.end().await;
}

#[tokio::test]
async fn a18_devices_are_behind_the_iommu_but_for_those_of_other_processes() {
    let mut machine = boot(VirtioPci::BehindIommu, true).await;
    for device in ALL {
        assert_eq!(property(&mut machine, device, "iommu_platform"), true, "{device}");
        assert_eq!(property(&mut machine, device, "disable-legacy"), "on", "{device}");
    }
    assert_eq!(property(&mut machine, "vsock0", "iommu_platform"), false);
    machine.end().await;
}

#[tokio::test]
async fn a_balloon_reports_free_pages_and_deflates_before_the_guest_kills() {
    let mut machine = boot(VirtioPci::Usual, false).await;
    assert_eq!(property(&mut machine, "balloon0", "free-page-reporting"), true);
    assert_eq!(property(&mut machine, "balloon0", "deflate-on-oom"), true);
    let balloon = machine.ask("query-balloon", json!({}));
    assert_eq!(balloon["actual"], 256_u64 << 20);
    machine.end().await;
}
