//! Plugging in, with a QEMU that follows a script.

mod disk;
mod memory;
mod nic;
mod pmem;
mod vfio;
mod vhost_user;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use serde_json::json;
use slog::{Discard, Logger, o};
use tempfile::NamedTempFile;

use super::*;
use crate::plug::{Disk, DiskBus};
use crate::qemu::qmp::tests::{Peer, connected};
use crate::spec;

async fn machine() -> (Plugs, Peer) {
    machine_with(|_| {}).await
}

async fn machine_on(accelerator: spec::Accelerator) -> (Plugs, Peer) {
    let range = spec::Vcpus::new(1, 3).unwrap();
    machine_with(|board| board.vcpus = Vcpus::booted(range, accelerator)).await
}

async fn machine_with(change: impl FnOnce(&mut Board)) -> (Plugs, Peer) {
    let (qmp, peer) = connected(Duration::from_secs(5)).await;
    let mut board = Board {
        qmp,
        nvdimms: None,
        pci: spec::PciPlaces::new(1, 2, spec::Window::default()).unwrap(),
        vfio: None,
        block: spec::Block::default(),
        virtio: spec::VirtioPci::Usual,
        devices: BTreeMap::new(),
        named: 0,
        vcpus: Vcpus::booted(spec::Vcpus::new(1, 3).unwrap(), spec::Accelerator::Kvm),
        memory: Memory::fixed(256),
        log: Logger::root(Discard, o!()),
    };
    change(&mut board);
    (Plugs::serve(board), peer)
}

fn image() -> (NamedTempFile, Pluggable) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&[0; 512]).unwrap();
    let disk = Disk { path: file.path().to_owned(), read_only: false, bus: DiskBus::VirtioBlk };
    (file, Pluggable::Disk(disk))
}

/// Answers `commands`, which are what is asked next and in this order.
async fn expect(peer: &mut Peer, commands: &[&str]) {
    for command in commands {
        let asked = peer.hear().await;
        assert_eq!(asked["execute"], *command);
        peer.say(&json!({"return": {}, "id": asked["id"]}).to_string()).await;
    }
}

/// Answers a command, which is to be this one.
async fn expect_exactly(
    peer: &mut Peer,
    command: &str,
    arguments: serde_json::Value,
    reply: serde_json::Value,
) {
    let asked = peer.hear().await;
    assert_eq!((&asked["execute"], &asked["arguments"]), (&json!(command), &arguments));
    peer.say(&json!({"return": reply, "id": asked["id"]}).to_string()).await;
}

async fn refuse(peer: &mut Peer, command: &str) {
    let asked = peer.hear().await;
    assert_eq!(asked["execute"], command);
    let error = json!({"class": "GenericError", "desc": "no"});
    peer.say(&json!({"error": error, "id": asked["id"]}).to_string()).await;
}

async fn deleted(peer: &mut Peer, device: &str) {
    let data = json!({"device": device, "path": "/x"});
    peer.say(&json!({"event": "DEVICE_DELETED", "data": data}).to_string()).await;
}

const PLUGGING: [&str; 3] = ["add-fd", "blockdev-add", "device_add"];
const TAKING_OUT: [&str; 2] = ["blockdev-del", "remove-fd"];

#[tokio::test]
async fn b7_what_is_behind_a_refused_disk_goes_again() {
    let (plugs, mut peer) = machine().await;
    let (_image, disk) = image();
    let script = async {
        expect(&mut peer, &PLUGGING[..2]).await;
        refuse(&mut peer, "device_add").await;
        expect(&mut peer, &TAKING_OUT).await;
    };
    let (plugged, ()) = tokio::join!(plugs.plug(disk), script);
    assert_eq!(plugged.unwrap_err().to_string(), "qemu refused device_add: no (GenericError)");
}

#[tokio::test]
async fn a_disk_that_nobody_waits_for_any_more_is_taken_out_again() {
    let (plugs, mut peer) = machine().await;
    let (_image, disk) = image();
    {
        let plugging = plugs.plug(disk);
        tokio::pin!(plugging);
        tokio::select! {
            _ = &mut plugging => panic!("plugged in before QEMU had answered"),
            () = expect(&mut peer, &PLUGGING[..2]) => {}
        }
    }
    expect(&mut peer, &["device_add", "device_del"]).await;
    deleted(&mut peer, "plugged-disk-1").await;
    expect(&mut peer, &TAKING_OUT).await;
}

#[tokio::test]
async fn b9_a_disk_is_there_until_the_guest_has_let_go_and_its_place_is_taken_until_then() {
    let (plugs, mut peer) = machine().await;
    let (_image, disk) = image();
    let (plugged, ()) = tokio::join!(plugs.plug(disk), expect(&mut peer, &PLUGGING));
    let first = plugged.unwrap();
    let refusal = async {
        expect(&mut peer, &["device_del"]).await;
        deleted(&mut peer, "another").await;
        let data = json!({"device": first.id.to_string(), "path": "/x"});
        peer.say(&json!({"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": data}).to_string()).await;
    };
    let (refused, ()) = tokio::join!(plugs.unplug(&first.id), refusal);
    assert!(matches!(refused, Err(PlugError::Refused(_))), "{refused:?}");

    let (_image, disk) = image();
    let (plugged, ()) = tokio::join!(plugs.plug(disk), expect(&mut peer, &PLUGGING));
    assert_eq!(plugged.unwrap().at.to_string(), "02/02");

    let farewell = async {
        expect(&mut peer, &["device_del"]).await;
        deleted(&mut peer, &first.id.to_string()).await;
        expect(&mut peer, &TAKING_OUT).await;
    };
    let (gone, ()) = tokio::join!(plugs.unplug(&first.id), farewell);
    gone.unwrap();
    assert!(matches!(plugs.unplug(&first.id).await, Err(PlugError::Unknown(_))));
    let (_image, disk) = image();
    let (plugged, ()) = tokio::join!(plugs.plug(disk), expect(&mut peer, &PLUGGING));
    assert_eq!(plugged.unwrap().at.to_string(), "02/01");
}

#[tokio::test(start_paused = true)]
async fn b9_a_guest_that_never_answers_is_given_up() {
    let (plugs, mut peer) = machine().await;
    let (_image, disk) = image();
    let (plugged, ()) = tokio::join!(plugs.plug(disk), expect(&mut peer, &PLUGGING));
    let id = plugged.unwrap().id;
    let silence = async {
        expect(&mut peer, &["device_del", "qom-get"]).await;
    };
    let (held, ()) = tokio::join!(plugs.unplug(&id), silence);
    assert_eq!(held.unwrap_err().to_string(), format!("the guest has not let go of {id} within 20s"));
}

fn cpu_slots(taken: usize) -> String {
    let slot = |number: usize| {
        let mut slot = json!({"type": "x-cpu", "vcpus-count": 1, "props": {"socket-id": number, "core-id": 0, "thread-id": 0}});
        if number < taken {
            slot["qom-path"] = json!("/machine/x");
        }
        slot
    };
    json!([slot(2), slot(1), slot(0)]).to_string()
}

/// From one to three.
async fn grow(plugs: &Plugs, peer: &mut Peer) {
    let script = async {
        for taken in 1..=2 {
            peer.answer(&cpu_slots(taken)).await;
            let asked = peer.hear().await;
            let id = format!("plugged-cpu-{taken}");
            let wanted =
                json!({"driver": "x-cpu", "id": id, "socket-id": taken, "core-id": 0, "thread-id": 0});
            assert_eq!(asked["arguments"], wanted);
            peer.say(&json!({"return": {}, "id": asked["id"]}).to_string()).await;
        }
    };
    let (count, ()) = tokio::join!(plugs.resize_vcpus(3), script);
    assert_eq!(count.unwrap(), 3);
}

#[tokio::test]
async fn emulated_processors_stay() {
    let (plugs, mut peer) = machine_on(spec::Accelerator::Tcg).await;
    grow(&plugs, &mut peer).await;
    // Nothing is asked for, or this would wait for an answer.
    assert_eq!(plugs.resize_vcpus(1).await.unwrap(), 3);
}

#[tokio::test]
async fn b13_b16_processors_come_into_the_first_free_place_and_the_last_one_goes_first() {
    let (plugs, mut peer) = machine().await;
    grow(&plugs, &mut peer).await;
    let shrinkage = async {
        // Of a processor QEMU tells its parts only, so it is asked.
        expect(&mut peer, &["device_del"]).await;
        let part = json!({"path": "/machine/peripheral/plugged-cpu-2/lapic"});
        peer.say(&json!({"event": "DEVICE_DELETED", "data": part}).to_string()).await;
        let asked = peer.hear().await;
        assert_eq!(asked["arguments"]["path"], "/machine/peripheral/plugged-cpu-2");
        let error = json!({"class": "DeviceNotFound", "desc": "no"});
        peer.say(&json!({"error": error, "id": asked["id"]}).to_string()).await;
    };
    let (count, ()) = tokio::join!(plugs.resize_vcpus(2), shrinkage);
    assert_eq!(count.unwrap(), 2);
}
