//! Boards other than the usual one.

use std::time::Duration;

use serde_json::json;
use vmm::spec::{Machine as Board, MachineOptions, Memory, Vcpus};
use vmm::{BootError, Hypervisor, Qemu};

use crate::Machine;
use crate::common::{Fixture, log};

fn microvm() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.spec.machine = Board::Microvm(MachineOptions::default());
    fixture.spec.vcpus = Vcpus::new(1, 1).unwrap();
    fixture.spec.memory = Memory::new(256, 0, 256).unwrap();
    fixture
}

#[tokio::test]
async fn a8_a_microvm_has_all_devices_without_pci_and_boots() {
    let mut machine = Machine::boot(microvm()).await;
    for (device, kind) in [
        ("scsi0", "virtio-scsi-device"),
        ("virtio-rng0", "virtio-rng-device"),
        ("fs0", "virtio-9p-device"),
        ("vsock0", "vhost-user-vsock-device"),
    ] {
        assert_eq!(machine.property(&format!("/machine/peripheral/{device}"), "type"), kind);
    }
    assert_eq!(machine.ask("query-pci", json!({})), json!([]));
    // The guest has no init, which its kernel only says once it has come up; the reset after that ends QEMU.
    let mut exit = machine.vm.exit();
    tokio::time::timeout(Duration::from_secs(60), exit.wait_for(Option::is_some)).await.unwrap().unwrap();
    let console = machine.vm.console_tail();
    assert!(console.contains("Kernel panic"), "{console}");
    machine.end().await;
}

#[tokio::test]
async fn a5_what_a_board_has_not_is_told_before_anything_starts() {
    let mut fixture = microvm();
    fixture.spec.iommu = true;
    let error = Qemu::new(log()).boot(fixture.spec.clone()).await.err().unwrap();
    assert!(matches!(error, BootError::Spec(_)), "{error}");
    fixture.assert_nothing_left();
}
