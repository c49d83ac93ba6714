//! Memory.

use serde_json::json;
use vmm::spec::{Backing, Memory, Numa, Vcpus, VsockSpec};
use vmm::{BootError, Hypervisor, Qemu};

use crate::Machine;
use crate::common::{Fixture, log};

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
    fixture.spec.memory = Memory::new(1 << 30, 4, 1 << 30).unwrap();
    let error = Qemu::new(log()).boot(fixture.spec.clone()).await.err().unwrap();
    assert!(matches!(error, BootError::HugePages { .. }), "{error}");
    assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn numa_nodes_have_memory_bound_to_the_host_and_processors_of_their_own() {
    let mut fixture = Fixture::new();
    fixture.spec.vcpus = Vcpus::new(3, 3).unwrap();
    let numa = Numa::new(vec![vec![0], vec![0]]).unwrap();
    fixture.spec.numa = Some(numa.with_distances(vec![vec![10, 21], vec![31, 10]]).unwrap());
    let mut machine = Machine::boot(fixture).await;
    for (id, mib) in [("memory0", 128_u64), ("memory1", 128)] {
        let path = format!("/objects/{id}");
        assert_eq!(machine.property(&path, "size"), mib << 20);
        assert_eq!(machine.property(&path, "policy"), "bind");
        assert_eq!(machine.property(&path, "host-nodes"), json!([0]));
    }
    let cpus = machine.ask("query-cpus-fast", json!({}));
    let cpus = cpus.as_array().unwrap().iter();
    let nodes: Vec<_> = cpus.map(|cpu| cpu["props"]["node-id"].as_u64().unwrap()).collect();
    assert_eq!(nodes, [0, 0, 1]);
    machine.end().await;
}

/// Of 5000 MiB a part is above the gap below 4 GiB, so that the nodes are more than 8 pieces.
#[tokio::test]
async fn eight_numa_nodes_and_virtio_mem_are_no_more_than_whoever_shares_the_memory_takes() {
    let mut fixture = Fixture::new().with_virtiofs();
    fixture.spec.memory = Memory::new(5000, 10, 8192).unwrap();
    fixture.spec.virtio_mem = true;
    fixture.spec.vsock = VsockSpec::VhostUser;
    fixture.spec.vcpus = Vcpus::new(1, 1).unwrap();
    fixture.spec.numa = Some(Numa::new(vec![vec![0]; 8]).unwrap());
    let mut machine = Machine::boot(fixture).await;
    assert_eq!(machine.ask("query-memdev", json!({})).as_array().unwrap().len(), 9);
    machine.end().await;
}
