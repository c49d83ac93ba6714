//! Files that are memory of the guest.

use super::*;
use crate::plug::Pmem;

fn file(read_only: bool) -> (NamedTempFile, Pluggable) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(2 << 20).unwrap();
    let pmem = Pmem { path: file.path().to_owned(), read_only };
    (file, Pluggable::Pmem(pmem))
}

/// A machine whose image is memory already, with one slot more.
async fn with_a_slot() -> (Plugs, Peer) {
    machine_with(|board| {
        board.nvdimms = Some(1);
        board.memory = Memory::with_slots(256, 1);
    })
    .await
}

#[tokio::test]
async fn b8_a_file_is_handed_over_by_descriptor_and_is_the_guests_next_memory() {
    let (plugs, mut peer) = with_a_slot().await;
    let (_file, pmem) = file(true);
    let backend = json!({"qom-type": "memory-backend-file", "id": "plugged-pmem-1-backend", "size": 2 << 20,
        "mem-path": "/proc/self/fd/17", "share": true, "readonly": true});
    let device = json!({"driver": "nvdimm", "id": "plugged-pmem-1", "memdev": "plugged-pmem-1-backend", "unarmed": true});
    let script = async {
        expect_exactly(&mut peer, "add-fd", json!({"fdset-id": 63}), json!({"fdset-id": 63, "fd": 17})).await;
        expect_exactly(&mut peer, "object-add", backend, json!({})).await;
        expect(&mut peer, &["remove-fd"]).await;
        expect_exactly(&mut peer, "device_add", device, json!({})).await;
    };
    let (plugged, ()) = tokio::join!(plugs.plug(pmem), script);
    let plugged = plugged.unwrap();
    assert_eq!(plugged.at.to_string(), "/dev/pmem1");

    // QEMU is not even asked.
    let stays = plugs.unplug(&plugged.id).await.unwrap_err().to_string();
    assert_eq!(stays, "plugged-pmem-1 is memory of the guest, which it has as long as it runs");
    let full = plugs.plug(file(true).1).await.unwrap_err().to_string();
    assert_eq!(full, "the machine has no free memory slot: raise memory_slots");
}

#[tokio::test]
async fn b8_what_is_behind_a_refused_nvdimm_goes_again() {
    let (plugs, mut peer) = with_a_slot().await;
    let script = async {
        peer.answer(r#"{"fdset-id": 63, "fd": 17}"#).await;
        expect(&mut peer, &["object-add", "remove-fd"]).await;
        refuse(&mut peer, "device_add").await;
        expect(&mut peer, &["object-del"]).await;
        // Nor does a descriptor stay whose object was refused.
        peer.answer(r#"{"fdset-id": 63, "fd": 17}"#).await;
        refuse(&mut peer, "object-add").await;
        expect(&mut peer, &["remove-fd", "object-del"]).await;
    };
    let plugging = async {
        let (_file, pmem) = file(false);
        let first = plugs.plug(pmem).await.unwrap_err().to_string();
        let (_file, pmem) = file(false);
        [first, plugs.plug(pmem).await.unwrap_err().to_string()]
    };
    let (refused, ()) = tokio::join!(plugging, script);
    let refusals =
        ["device_add", "object-add"].map(|command| format!("qemu refused {command}: no (GenericError)"));
    assert_eq!(refused, refusals);
}

#[tokio::test]
async fn b8_a_board_that_knows_of_no_nvdimms_takes_none() {
    let (plugs, _peer) = machine().await;
    let refused = plugs.plug(file(false).1).await.unwrap_err().to_string();
    assert_eq!(refused, "the machine takes no memory that is a file: set block_device_driver to nvdimm");
}
