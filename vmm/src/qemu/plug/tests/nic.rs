//! Network interfaces, whose packets the kernel moves where it can.

use std::os::fd::OwnedFd;

use super::*;
use crate::plug::Nic;

fn nic(queues: usize, vhost: usize) -> Pluggable {
    let files =
        |count| (0..count).map(|_| OwnedFd::from(std::fs::File::open("/dev/null").unwrap())).collect();
    Pluggable::Nic(Nic { queues: files(queues), vhost: files(vhost), mac: [2, 0, 0, 0xca, 0xfe, 1] })
}

async fn take(peer: &mut Peer, names: &[&str]) {
    for name in names {
        expect_exactly(peer, "getfd", json!({"fdname": name}), json!({})).await;
    }
}

#[tokio::test]
async fn b12_every_queue_has_a_descriptor_and_one_of_vhost_and_both_go_with_the_interface() {
    let (plugs, mut peer) = machine().await;
    let id = "plugged-nic-1";
    let netdev = json!({
        "type": "tap", "id": id, "fds": "plugged-nic-1-queue-0:plugged-nic-1-queue-1", "vhost": true,
        "vhostfds": "plugged-nic-1-vhost-0:plugged-nic-1-vhost-1",
    });
    let device = json!({
        "driver": "virtio-net-pci", "id": id, "netdev": id, "mac": "02:00:00:ca:fe:01", "mq": true, "vectors": 6, "romfile": "",
        "bus": "pci-bridge-0", "addr": "1",
    });
    let script = async {
        take(&mut peer, &["plugged-nic-1-queue-0", "plugged-nic-1-queue-1"]).await;
        take(&mut peer, &["plugged-nic-1-vhost-0", "plugged-nic-1-vhost-1"]).await;
        expect_exactly(&mut peer, "netdev_add", netdev, json!({})).await;
        expect_exactly(&mut peer, "device_add", device, json!({})).await;
        expect(&mut peer, &["device_del"]).await;
        deleted(&mut peer, id).await;
        expect_exactly(&mut peer, "netdev_del", json!({"id": id}), json!({})).await;
    };
    let visit = async {
        let plugged = plugs.plug(nic(2, 2)).await.unwrap();
        assert_eq!(plugged.at.to_string(), "02/01");
        plugs.unplug(&plugged.id).await
    };
    let (gone, ()) = tokio::join!(visit, script);
    gone.unwrap();
}

#[tokio::test]
async fn b12_without_vhost_qemu_is_told_of_none() {
    let (plugs, mut peer) = machine().await;
    let id = "plugged-nic-1";
    let netdev = json!({"type": "tap", "id": id, "fds": "plugged-nic-1-queue-0", "vhost": false});
    let script = async {
        take(&mut peer, &["plugged-nic-1-queue-0"]).await;
        expect_exactly(&mut peer, "netdev_add", netdev, json!({})).await;
        let asked = peer.hear().await;
        assert_eq!((&asked["arguments"]["mq"], &asked["arguments"]["vectors"]), (&json!(false), &json!(4)));
        peer.say(&json!({"return": {}, "id": asked["id"]}).to_string()).await;
    };
    let (plugged, ()) = tokio::join!(plugs.plug(nic(1, 0)), script);
    plugged.unwrap();
}

#[tokio::test]
async fn b12_what_is_behind_a_refused_interface_goes_again_and_its_place_is_free() {
    let (plugs, mut peer) = machine().await;
    let script = async {
        expect(&mut peer, &["getfd", "getfd"]).await;
        refuse(&mut peer, "netdev_add").await;
        for name in ["plugged-nic-1-queue-0", "plugged-nic-1-vhost-0"] {
            expect_exactly(&mut peer, "closefd", json!({"fdname": name}), json!({})).await;
        }
        expect(&mut peer, &["getfd", "getfd", "netdev_add"]).await;
        refuse(&mut peer, "device_add").await;
        expect_exactly(&mut peer, "netdev_del", json!({"id": "plugged-nic-2"}), json!({})).await;
        expect(&mut peer, &["getfd", "getfd", "netdev_add", "device_add"]).await;
    };
    let visits = async {
        let refused = plugs.plug(nic(1, 1)).await.unwrap_err().to_string();
        assert_eq!(refused, "qemu refused netdev_add: no (GenericError)");
        let refused = plugs.plug(nic(1, 1)).await.unwrap_err().to_string();
        assert_eq!(refused, "qemu refused device_add: no (GenericError)");
        plugs.plug(nic(1, 1)).await.unwrap()
    };
    let (plugged, ()) = tokio::join!(visits, script);
    assert_eq!(plugged.at.to_string(), "02/01");
}

#[tokio::test]
async fn b12_queues_that_vhost_has_not_as_many_of_are_refused_before_qemu_hears_of_them() {
    let (plugs, _peer) = machine().await;
    for (queues, vhost) in [(0, 0), (2, 1), (1, 2)] {
        let refused = plugs.plug(nic(queues, vhost)).await.unwrap_err();
        assert!(matches!(refused, PlugError::Queues { .. }), "{refused}");
    }
}
