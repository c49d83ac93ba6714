//! Devices of the host.

use serde_json::Value;

use super::*;
use crate::spec::VfioPort;
use crate::vfio::tests::{Sysfs, forty};

async fn with_port(port: VfioPort) -> (Plugs, Peer) {
    machine_with(|board| {
        board.vfio = Some(port);
        board.pci = board.pci.with_switch(2).unwrap();
    })
    .await
}

fn device(express: bool) -> Pluggable {
    Pluggable::HostDevice(Sysfs::one(express))
}

/// Answers the plugging of [`device`], which is to be into `addr` of `bus`.
async fn added(peer: &mut Peer, bus: &str, addr: &str) {
    let body = json!({"driver": "vfio-pci", "id": "plugged-vfio-1", "host": "0000:01:00.0", "romfile": "",
        "bus": bus, "addr": addr});
    expect_exactly(peer, "device_add", body, json!({})).await;
}

/// Tells where a device is: its address and its bus.
async fn tell(peer: &mut Peer, device: &str, addr: u32, bus: &str) {
    let property = |name: &str| json!({"path": format!("/machine/peripheral/{device}"), "property": name});
    expect_exactly(peer, "qom-get", property("addr"), json!(addr)).await;
    expect_exactly(peer, "qom-get", property("parent_bus"), json!(bus)).await;
}

async fn plugged(plugs: &Plugs, express: bool, script: impl Future<Output = ()>) -> Result<String, String> {
    let (plugged, ()) = tokio::join!(plugs.plug(device(express)), script);
    plugged.map(|plugged| plugged.at.to_string()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn b11_a_device_on_a_root_port_is_found_behind_the_port() {
    let (plugs, mut peer) = with_port(VfioPort::Root).await;
    let script = async {
        added(&mut peer, "rp0", "0").await;
        tell(&mut peer, "plugged-vfio-1", 0, "/machine/peripheral/rp0/rp0").await;
        tell(&mut peer, "rp0", 7 << 3, "/machine/q35/pcie.0").await;
    };
    assert_eq!(plugged(&plugs, true, script).await, Ok("07/00".into()));
}

#[tokio::test]
async fn b11_a_device_on_a_switch_is_found_behind_its_two_ports_and_the_root_port() {
    let (plugs, mut peer) = with_port(VfioPort::Switch).await;
    let script = async {
        added(&mut peer, "swdp0", "0").await;
        tell(&mut peer, "plugged-vfio-1", 0, "/machine/peripheral/swdp0/swdp0").await;
        tell(&mut peer, "swdp0", 1 << 3, "/machine/peripheral/swup0/swup0").await;
        tell(&mut peer, "swup0", 0, "/machine/peripheral/rp2/rp2").await;
        tell(&mut peer, "rp2", 9 << 3, "/machine/q35/pcie.0").await;
    };
    assert_eq!(plugged(&plugs, true, script).await, Ok("09/00/01/00".into()));
}

#[tokio::test]
async fn b11_a_conventional_device_and_a_disk_share_a_bridge() {
    let (plugs, mut peer) = with_port(VfioPort::Root).await;
    let script = async {
        added(&mut peer, "pci-bridge-0", "1").await;
        tell(&mut peer, "plugged-vfio-1", 1 << 3, "/machine/peripheral/pci-bridge-0/pci-bridge-0").await;
        tell(&mut peer, "pci-bridge-0", 2 << 3, "/machine/q35/pcie.0").await;
    };
    assert_eq!(plugged(&plugs, false, script).await, Ok("02/01".into()));
    let (_image, disk) = image();
    let (disk, ()) = tokio::join!(plugs.plug(disk), expect(&mut peer, &PLUGGING));
    assert_eq!(disk.unwrap().at.to_string(), "02/02");
}

#[tokio::test]
async fn b11_a_place_is_free_again_when_the_guest_has_let_go() {
    let (plugs, mut peer) = with_port(VfioPort::Root).await;
    let script = async {
        expect(&mut peer, &["device_add"]).await;
        tell(&mut peer, "plugged-vfio-1", 0, "/machine/q35/pcie.0").await;
        expect(&mut peer, &["device_del"]).await;
        deleted(&mut peer, "plugged-vfio-1").await;
        let asked = peer.hear().await;
        assert_eq!(asked["arguments"]["bus"], "rp0");
        refuse_as(&mut peer, &asked).await;
    };
    let visit = async {
        let first = plugs.plug(device(true)).await.unwrap();
        plugs.unplug(&first.id).await.unwrap();
        plugs.plug(device(true)).await.unwrap_err().to_string()
    };
    let (refused, ()) = tokio::join!(visit, script);
    assert_eq!(refused, "qemu refused device_add: no (GenericError)");
}

async fn refuse_as(peer: &mut Peer, asked: &Value) {
    let error = json!({"class": "GenericError", "desc": "no"});
    peer.say(&json!({"error": error, "id": asked["id"]}).to_string()).await;
}

#[tokio::test]
async fn b11_a_device_where_no_agent_looks_is_taken_out_again() {
    let (plugs, mut peer) = with_port(VfioPort::Root).await;
    let script = async {
        expect(&mut peer, &["device_add"]).await;
        peer.answer("1").await;
        expect(&mut peer, &["device_del"]).await;
        deleted(&mut peer, "plugged-vfio-1").await;
    };
    let refused = plugged(&plugs, true, script).await.unwrap_err();
    assert_eq!(refused, "plugged-vfio-1 is function 1 of its slot, and a guest looks for function 0 only");
}

/// Answers the unplugging of a device that the guest keeps for now.
async fn kept(peer: &mut Peer, device: &str) {
    expect_exactly(peer, "device_del", json!({"id": device}), json!({})).await;
    let event = json!({"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": device, "path": "/x"}});
    peer.say(&event.to_string()).await;
}

/// Answers the unplugging of a device that the guest is about to let go of.
async fn goes_late(peer: &mut Peer, device: &str) {
    let asked = peer.hear().await;
    assert_eq!((&asked["execute"], &asked["arguments"]), (&json!("device_del"), &json!({"id": device})));
    let error = json!({"class": "GenericError",
        "desc": format!("Device {device} is already in the process of unplug")});
    peer.say(&json!({"error": error, "id": asked["id"]}).to_string()).await;
    deleted(peer, device).await;
}

/// Answers the plugging of a device, which is to be into `bus`, and tells where it is.
async fn comes(peer: &mut Peer, id: &str, bus: &str) {
    let asked = peer.hear().await;
    let arguments = &asked["arguments"];
    assert_eq!((&arguments["id"], &arguments["bus"]), (&json!(id), &json!(bus)), "{asked}");
    peer.say(&json!({"return": {}, "id": asked["id"]}).to_string()).await;
    tell(peer, id, 0, "/machine/q35/pcie.0").await;
}

#[tokio::test]
async fn b11_a_device_that_the_guest_let_go_of_late_comes_again() {
    let (plugs, mut peer) = with_port(VfioPort::Root).await;
    let script = async {
        comes(&mut peer, "plugged-vfio-1", "rp0").await;
        kept(&mut peer, "plugged-vfio-1").await;
        kept(&mut peer, "plugged-vfio-1").await;
        goes_late(&mut peer, "plugged-vfio-1").await;
        comes(&mut peer, "plugged-vfio-3", "rp0").await;
    };
    let visit = async {
        let first = plugs.plug(device(true)).await.unwrap();
        assert!(matches!(plugs.unplug(&first.id).await, Err(PlugError::Refused(_))));
        assert!(matches!(plugs.plug(device(true)).await, Err(PlugError::Refused(_))));
        let again = plugs.plug(device(true)).await.unwrap();
        assert_eq!(again.at.to_string(), "00");
        assert!(matches!(plugs.unplug(&first.id).await, Err(PlugError::Unknown(_))));
    };
    tokio::join!(visit, script);
}

#[tokio::test]
async fn b11_a_device_that_was_not_found_and_stays_keeps_its_port() {
    let (plugs, mut peer) = with_port(VfioPort::Root).await;
    let script = async {
        expect(&mut peer, &["device_add"]).await;
        peer.answer("1").await;
        kept(&mut peer, "plugged-vfio-1").await;
        comes(&mut peer, "plugged-vfio-2", "rp1").await;
        goes_late(&mut peer, "plugged-vfio-1").await;
        comes(&mut peer, "plugged-vfio-3", "rp0").await;
    };
    let visit = async {
        assert!(matches!(plugs.plug(device(true)).await, Err(PlugError::Function { function: 1, .. })));
        plugs.plug(Pluggable::HostDevice(forty()[0].clone())).await.unwrap();
        plugs.plug(device(true)).await.unwrap();
    };
    tokio::join!(visit, script);
}

#[tokio::test]
async fn b11_a_device_that_is_in_use_is_not_taken_out_for_another_user() {
    let (plugs, mut peer) = with_port(VfioPort::Root).await;
    let script = async {
        comes(&mut peer, "plugged-vfio-1", "rp0").await;
        refuse(&mut peer, "device_add").await;
    };
    let visit = async {
        plugs.plug(device(true)).await.unwrap();
        assert!(plugs.plug(device(true)).await.is_err());
    };
    tokio::join!(visit, script);
}

#[tokio::test]
async fn b11_parts_of_devices_are_handed_over_by_their_directories() {
    let (plugs, mut peer) = with_port(VfioPort::Bridge).await;
    let sysfs = Sysfs::new();
    sysfs.pci("0000:00:02.0", 1, "i915", "0x030000", 4096);
    let part = sysfs.part_of("bus/pci/devices/0000:00:02.0", "vfio-pci");
    let body = json!({"driver": "vfio-pci", "id": "plugged-vfio-1", "sysfsdev": part.to_string(), "romfile": "",
        "bus": "pci-bridge-0", "addr": "1"});
    let script = async {
        expect_exactly(&mut peer, "device_add", body, json!({})).await;
        tell(&mut peer, "plugged-vfio-1", 1 << 3, "/machine/peripheral/pci-bridge-0/pci-bridge-0").await;
        tell(&mut peer, "pci-bridge-0", 2 << 3, "/machine/q35/pcie.0").await;
    };
    let (plugged, ()) = tokio::join!(plugs.plug(Pluggable::HostDevice(part)), script);
    assert_eq!(plugged.unwrap().at.to_string(), "02/01");

    let sysfs = Sysfs::new();
    let matrix = sysfs.part_of("devices/vfio_ap/matrix", "vfio-ap");
    let body = json!({"driver": "vfio-ap", "id": "plugged-vfio-2", "sysfsdev": matrix.to_string()});
    let script = expect_exactly(&mut peer, "device_add", body, json!({}));
    let (plugged, ()) = tokio::join!(plugs.plug(Pluggable::HostDevice(matrix)), script);
    assert_eq!(plugged.unwrap().at.to_string(), "ap");
}

#[tokio::test]
async fn b11_a_machine_that_is_to_get_none_says_what_would_let_them_come() {
    let (plugs, _peer) = machine().await;
    let refused = plugs.plug(device(true)).await.unwrap_err().to_string();
    assert_eq!(refused, "the machine takes no device of the host while it runs: set hot_plug_vfio");
}
