//! Devices of other programs that a machine starts with.

use std::num::NonZeroU32;

use serde_json::json;
use vmm::spec::{VhostUser, VhostUserKind};

use crate::Machine;
use crate::common::Fixture;
use crate::common::backend;
use crate::common::storage::Server;

#[tokio::test]
async fn a23_b18_a_disk_of_another_program_is_there_from_the_start() {
    let mut fixture = Fixture::new();
    let (image, socket) = (fixture.dir.path().join("disk.img"), fixture.dir.path().join("disk.sock"));
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let _server = Server::start(&image, &socket);
    let disk = VhostUser::new(&socket, VhostUserKind::Blk, NonZeroU32::new(5)).unwrap();
    fixture.spec.vhost_user = vec![disk];
    let mut machine = Machine::boot(fixture).await;
    let device = "/machine/peripheral/vhost-user0";
    assert_eq!(machine.property(device, "type"), "vhost-user-blk-pci");
    assert_eq!(machine.property(device, "chardev"), "charvhost-user0");
    assert_connected(&mut machine, "charvhost-user0");
    machine.end().await;
}

/// Where nobody is at the other end, the file's name begins with `disconnected`.
#[track_caller]
fn assert_connected(machine: &mut Machine, chardev: &str) {
    let chardevs = machine.ask("query-chardev", json!({}));
    let ours = chardevs.as_array().unwrap().iter().find(|one| one["label"] == chardev).unwrap();
    let file = ours["filename"].as_str().unwrap();
    assert!(file.starts_with("unix:"), "{file}");
}

#[tokio::test]
async fn a23_b18_a_controller_and_a_network_interface_of_other_programs_are_there_from_the_start() {
    let mut fixture = Fixture::new();
    let kinds = [VhostUserKind::Scsi, VhostUserKind::Net([2, 0, 0, 0, 0, 7])];
    let device = |(number, kind)| {
        let socket = fixture.dir.path().join(format!("{number}.sock"));
        backend::start(&socket);
        VhostUser::new(&socket, kind, None).unwrap()
    };
    fixture.spec.vhost_user = kinds.into_iter().enumerate().map(device).collect();
    let mut machine = Machine::boot(fixture).await;
    let [scsi, net] = ["vhost-user0", "vhost-user1"].map(|id| format!("/machine/peripheral/{id}"));
    assert_eq!(machine.property(&scsi, "type"), "vhost-user-scsi-pci");
    assert_eq!(machine.property(&scsi, "chardev"), "charvhost-user0");
    assert_eq!(machine.property(&net, "type"), "virtio-net-pci");
    assert_eq!(machine.property(&net, "mac"), "02:00:00:00:00:07");
    assert_eq!(machine.property(&net, "netdev"), "netvhost-user1");
    for chardev in ["charvhost-user0", "charvhost-user1"] {
        assert_connected(&mut machine, chardev);
    }
    machine.end().await;
}
