//! Disks that other programs serve.

use std::num::NonZeroU32;

use super::*;
use crate::plug::VhostUserDisk;

fn disk(reconnect: u32) -> Pluggable {
    Pluggable::VhostUserDisk(VhostUserDisk::new("/run/a,b.sock", NonZeroU32::new(reconnect)).unwrap())
}

#[tokio::test]
async fn b10_a_disk_of_another_program_comes_and_goes_with_the_connection_to_it() {
    let (plugs, mut peer) = machine().await;
    let address = json!({"type": "unix", "data": {"path": "/run/a,b.sock"}});
    let backend = json!({"type": "socket", "data": {"addr": address, "server": false, "reconnect": 5}});
    let id = "plugged-vhost-user-disk-1";
    let device =
        json!({"driver": "vhost-user-blk-pci", "id": id, "chardev": id, "bus": "pci-bridge-0", "addr": "1"});
    let script = async {
        expect_exactly(&mut peer, "chardev-add", json!({"id": id, "backend": backend}), json!({})).await;
        expect_exactly(&mut peer, "device_add", device, json!({})).await;
        expect(&mut peer, &["device_del"]).await;
        deleted(&mut peer, id).await;
        expect_exactly(&mut peer, "chardev-remove", json!({"id": id}), json!({})).await;
    };
    let visit = async {
        let plugged = plugs.plug(disk(5)).await.unwrap();
        assert_eq!(plugged.at.to_string(), "02/01");
        plugs.unplug(&plugged.id).await
    };
    let (gone, ()) = tokio::join!(visit, script);
    gone.unwrap();
}

#[tokio::test]
async fn b10_the_connection_of_a_refused_disk_ends() {
    let (plugs, mut peer) = machine().await;
    let script = async {
        let asked = peer.hear().await;
        assert!(asked["arguments"]["backend"]["data"].get("reconnect").is_none(), "{asked}");
        peer.say(&json!({"return": {}, "id": asked["id"]}).to_string()).await;
        refuse(&mut peer, "device_add").await;
        expect(&mut peer, &["chardev-remove"]).await;
    };
    let (refused, ()) = tokio::join!(plugs.plug(disk(0)), script);
    assert_eq!(refused.unwrap_err().to_string(), "qemu refused device_add: no (GenericError)");
}
