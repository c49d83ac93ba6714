//! What no machine here can have, as it takes KVM, vhost or huge pages. QEMU still tells whether it knows the words that
//! its command line would have.

use serde_json::{Value, json};

use crate::Machine;
use crate::common::Fixture;

/// The names in a list of QEMU's.
fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

#[track_caller]
fn knows(known: &Value, words: &[&str]) {
    let names = names(known);
    for word in words {
        assert!(names.contains(word), "{word}: {names:?}");
    }
}

#[tokio::test]
async fn a11_qemu_knows_the_words_for_huge_pages() {
    let mut machine = Machine::boot(Fixture::new()).await;
    let known = machine.ask("qom-list-properties", json!({"typename": "memory-backend-memfd"}));
    knows(&known, &["size", "share", "hugetlb", "prealloc", "host-nodes", "policy"]);
    machine.end().await;
}

#[tokio::test]
async fn a8_a27_a28_qemu_knows_the_words_of_boards_with_kvm() {
    let mut machine = Machine::boot(Fixture::new()).await;
    let board = machine.property("/machine", "type");
    let mut of = |kind: &Value| machine.ask("qom-list-properties", json!({"typename": kind}));
    knows(&of(&board), &["confidential-guest-support", "sgx-epc", "nvdimm", "memory-backend"]);
    // Where -machine's `kernel_irqchip` goes.
    knows(&of(&json!("kvm-accel")), &["kernel-irqchip"]);
    let models = machine.ask("query-cpu-definitions", json!({}));
    assert!(names(&models).contains(&"host") && names(&models).contains(&"max"));
    machine.end().await;
}

#[tokio::test]
async fn a24_b18_qemu_knows_the_words_of_devices_that_the_kernel_serves() {
    let mut machine = Machine::boot(Fixture::new()).await;
    let mut of = |kind: &str| machine.ask("device-list-properties", json!({"typename": kind}));
    knows(&of("vhost-vsock-pci"), &["guest-cid", "vhostfd"]);
    knows(&of("kvm-pit"), &["lost_tick_policy"]);
    knows(&of("vfio-pci"), &["host", "sysfsdev", "romfile", "addr"]);
    knows(&of("virtio-net-pci"), &["mq", "vectors", "mac", "netdev"]);
    machine.end().await;
}
