//! Devices of other programs that a machine starts with.

use std::num::NonZeroU32;

use serde_json::json;
use vmm::spec::{VhostUser, VhostUserKind};

use crate::Machine;
use crate::common::Fixture;
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
    let chardevs = machine.ask("query-chardev", json!({}));
    let of_disk = chardevs.as_array().unwrap().iter().find(|one| one["label"] == "charvhost-user0").unwrap();
    let file = of_disk["filename"].as_str().unwrap();
    // Where nobody is at the other end, it begins with `disconnected`.
    assert!(file.starts_with("unix:"), "{file}");
    machine.end().await;
}
