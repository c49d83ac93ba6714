//! Disks that other programs serve.

use std::num::NonZeroU32;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use super::*;
use crate::plug::VhostUserDisk;

fn disk(socket: &Path, reconnect: u32) -> Pluggable {
    Pluggable::VhostUserDisk(VhostUserDisk::new(socket, NonZeroU32::new(reconnect)).unwrap())
}

#[tokio::test]
async fn b10_a_disk_of_another_program_comes_and_goes_with_the_connection_to_it() {
    let (plugs, mut peer) = machine().await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("a,b.sock");
    let _server = UnixListener::bind(&socket).unwrap();
    let address = json!({"type": "unix", "data": {"path": socket}});
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
        let plugged = plugs.plug(disk(&socket, 5)).await.unwrap();
        assert_eq!(plugged.at.to_string(), "02/01");
        plugs.unplug(&plugged.id).await
    };
    let (gone, ()) = tokio::join!(visit, script);
    gone.unwrap();
}

#[tokio::test]
async fn b10_the_connection_of_a_refused_disk_ends() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let _server = UnixListener::bind(&socket).unwrap();
    let (plugs, mut peer) = machine().await;
    let script = async {
        let asked = peer.hear().await;
        assert!(asked["arguments"]["backend"]["data"].get("reconnect").is_none(), "{asked}");
        peer.say(&json!({"return": {}, "id": asked["id"]}).to_string()).await;
        refuse(&mut peer, "device_add").await;
        expect(&mut peer, &["chardev-remove"]).await;
    };
    let (refused, ()) = tokio::join!(plugs.plug(disk(&socket, 0)), script);
    assert_eq!(refused.unwrap_err().to_string(), "qemu refused device_add: no (GenericError)");
}

#[tokio::test]
async fn b10_qemu_is_not_asked_to_wait_for_a_program_that_is_not_there() {
    let (plugs, _peer) = machine().await;
    let dir = tempfile::tempdir().unwrap();
    let refused = async |name: &str| {
        let path = dir.path().join(name);
        let error = plugs.plug(disk(&path, 5)).await.unwrap_err().to_string();
        error.strip_prefix(&format!("open {}: ", path.display())).unwrap().to_owned()
    };
    assert!(refused("none").await.starts_with("No such file"));
    drop(UnixListener::bind(dir.path().join("left-behind")).unwrap());
    assert!(refused("left-behind").await.starts_with("Connection refused"));
    let _other = UnixDatagram::bind(dir.path().join("other")).unwrap();
    assert!(refused("other").await.starts_with("Protocol wrong type"));
}
