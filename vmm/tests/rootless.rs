//! A real QEMU that is not root. These tests have to be.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::monitor::Machine;
use common::{Fixture, log, named, status};
use vmm::plug::{Disk, DiskBus, Pluggable};
use vmm::spec::{PciPlaces, Window};
use vmm::{BootError, Hypervisor, PathProblem, Qemu};

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("left out: only root can become somebody else");
    }
    root
}

fn ids(pid: u32, field: &str) -> Vec<u32> {
    status(pid, field).split_whitespace().map(|id| id.parse().unwrap()).collect()
}

async fn refused(fixture: &Fixture) -> BootError {
    Qemu::new(log()).boot(fixture.spec.clone()).await.err().unwrap()
}

#[tokio::test]
async fn a33_c4_a_rootless_qemu_is_nobody_and_may_do_nothing() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::boot(Fixture::new().with_virtiofs().rootless()).await;
    let qemu = machine.vm.pid();
    let uids = ids(qemu, "Uid");
    assert!((0x7000_0000..0x7001_0000).contains(&uids[0]), "{uids:?}");
    assert_eq!(uids, [uids[0]; 4]);
    assert_eq!(ids(qemu, "Gid"), uids);
    assert_eq!(ids(qemu, "Groups"), [0; 0]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(qemu, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(qemu, "NoNewPrivs"), "1");
    assert_eq!(ids(named(&machine.vm.processes(), "virtiofsd").pid, "Uid"), [0; 4]);
    assert_eq!(machine.ask("query-status", serde_json::json!({}))["status"], "running");
    for entry in std::fs::read_dir(&machine.fixture.spec.run_dir).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        let owner = std::os::unix::fs::MetadataExt::uid(&metadata);
        assert_eq!((owner, metadata.permissions().mode() & 0o077), (0, 0), "{:?}", entry.path());
    }
    machine.end().await;
}

#[tokio::test]
async fn a33_a_rootless_qemu_takes_disks_that_only_root_can_open() {
    if !is_root() {
        return;
    }
    let mut fixture = Fixture::new().with_virtiofs().rootless();
    fixture.spec.pci = PciPlaces::new(1, 0, Window::default()).unwrap();
    let path = fixture.dir.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let machine = Machine::boot(fixture).await;
    for bus in [DiskBus::VirtioBlk, DiskBus::Scsi] {
        for read_only in [true, false] {
            machine.vm.plug(Pluggable::Disk(Disk { path: path.clone(), read_only, bus })).await.unwrap();
        }
    }
    machine.end().await;
}

#[tokio::test]
async fn a33_two_rootless_machines_are_two_users() {
    if !is_root() {
        return;
    }
    let fixtures = [Fixture::new().with_virtiofs().rootless(), Fixture::new().with_virtiofs().rootless()];
    let qemu = Qemu::new(log());
    let one = qemu.boot(fixtures[0].spec.clone()).await.unwrap();
    let other = qemu.boot(fixtures[1].spec.clone()).await.unwrap();
    assert_ne!(ids(one.pid(), "Uid"), ids(other.pid(), "Uid"));
    one.stop(Duration::from_secs(4)).await.unwrap();
    other.stop(Duration::ZERO).await.unwrap();
    fixtures.iter().for_each(Fixture::assert_nothing_left);
}

#[tokio::test]
async fn a33_what_a_rootless_qemu_could_not_open_is_named_before_it_starts() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new().with_virtiofs().rootless();
    std::fs::set_permissions(&fixture.spec.kernel, std::fs::Permissions::from_mode(0o600)).unwrap();
    let BootError::Path(error) = refused(&fixture).await else { panic!("not about a path") };
    assert_eq!((error.path, error.problem), (fixture.spec.kernel.clone(), PathProblem::NotForUser));
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn a33_a_rootless_qemu_serves_no_share_itself() {
    let error = refused(&Fixture::new().rootless()).await.to_string();
    assert_eq!(error, "a share by virtio-9p, which QEMU serves itself, cannot be had with rootless");
}
