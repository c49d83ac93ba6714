//! Memory modules.

use super::*;
use crate::plug::MemorySize;
use crate::spec::{Backing, Boot, VmName, VmSpec, VmUuid};

const ID: &str = "plugged-memory-1";
const BACKEND: &str = "plugged-memory-1-backend";

/// A machine of 256 MiB that may grow to 1 GiB, whose memory is in `backing`.
async fn growing(backing: Backing, prealloc: bool) -> (Plugs, Peer) {
    growing_to(1024, backing, prealloc).await
}

async fn growing_to(most: u64, backing: Backing, prealloc: bool) -> (Plugs, Peer) {
    let (name, uuid) = (VmName::new("test").unwrap(), VmUuid::random().unwrap());
    let boot = Boot::Initrd("/initrd".into());
    let plain = VmSpec::plain(name, uuid, "/run/x".into(), "/qemu".into(), "/kernel".into(), boot).unwrap();
    let memory = spec::Memory::new(256, 4, most).unwrap();
    let spec = VmSpec { memory, backing, prealloc, ..plain };
    machine_with(|board| board.memory = Memory::booted(&spec)).await
}

fn size(mib: u64) -> MemorySize {
    MemorySize { mib, block_mib: 128 }
}

#[tokio::test]
async fn a38_b14_later_memory_is_where_that_of_the_boot_is() {
    let bytes = 256 << 20;
    let in_memory = json!({"qom-type": "memory-backend-memfd", "id": BACKEND, "size": bytes, "share": true});
    let huge = json!({
        "qom-type": "memory-backend-memfd", "id": BACKEND, "size": bytes, "share": true, "hugetlb": true,
        "prealloc": true,
    });
    let in_a_file = json!({
        "qom-type": "memory-backend-file", "id": BACKEND, "size": bytes, "share": true, "mem-path": "/mnt/a,b",
    });
    for (backing, prealloc, object) in [
        (Backing::Anonymous, false, in_memory),
        (Backing::HugePages, true, huge),
        (Backing::Directory("/mnt/a,b".into()), false, in_a_file),
    ] {
        let (plugs, mut peer) = growing(backing, prealloc).await;
        let device = json!({"driver": "pc-dimm", "id": ID, "memdev": BACKEND});
        let script = async {
            expect_exactly(&mut peer, "object-add", object, json!({})).await;
            expect_exactly(&mut peer, "device_add", device, json!({})).await;
        };
        let (grown, ()) = tokio::join!(plugs.resize_memory(size(512)), script);
        assert_eq!(grown.unwrap(), 512);
    }
}

#[tokio::test]
async fn b14_what_is_behind_a_refused_module_goes_again() {
    let (plugs, mut peer) = growing(Backing::Anonymous, false).await;
    let script = async {
        expect(&mut peer, &["object-add"]).await;
        refuse(&mut peer, "device_add").await;
        expect_exactly(&mut peer, "object-del", json!({"id": BACKEND}), json!({})).await;
    };
    let (refused, ()) = tokio::join!(plugs.resize_memory(size(512)), script);
    assert_eq!(refused.unwrap_err().to_string(), "qemu refused device_add: no (GenericError)");
}

#[tokio::test]
async fn b14_b15_a_module_goes_when_the_guest_lets_go_of_it_and_one_in_use_stays() {
    let (plugs, mut peer) = growing(Backing::Anonymous, false).await;
    let (grown, ()) =
        tokio::join!(plugs.resize_memory(size(512)), expect(&mut peer, &["object-add", "device_add"]));
    assert_eq!(grown.unwrap(), 512);
    let in_use = async {
        expect_exactly(&mut peer, "device_del", json!({"id": ID}), json!({})).await;
        let data = json!({"device": ID, "path": "/x"});
        peer.say(&json!({"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": data}).to_string()).await;
    };
    let (kept, ()) = tokio::join!(plugs.resize_memory(size(256)), in_use);
    assert_eq!(kept.unwrap(), 512);
    let unused = async {
        expect(&mut peer, &["device_del"]).await;
        deleted(&mut peer, ID).await;
        expect_exactly(&mut peer, "object-del", json!({"id": BACKEND}), json!({})).await;
    };
    let (shrunk, ()) = tokio::join!(plugs.resize_memory(size(256)), unused);
    assert_eq!(shrunk.unwrap(), 256);
}

/// A guest of 256 MiB takes 8 GiB at once and no more.
#[tokio::test]
async fn growth_that_nobody_waits_for_any_more_stops_after_the_module_under_way() {
    let (plugs, mut peer) = growing_to(1 << 20, Backing::Anonymous, false).await;
    let growing = async {
        tokio::select! {
            _ = plugs.resize_memory(size(1 << 20)) => panic!("the peer has not answered"),
            asked = peer.hear() => asked,
        }
    };
    let first = growing.await;
    assert_eq!((&first["execute"], &first["arguments"]["size"]), (&json!("object-add"), &json!(8_u64 << 30)));
    peer.say(&json!({"return": {}, "id": first["id"]}).to_string()).await;
    expect(&mut peer, &["device_add"]).await;
    // What is asked for next comes next.
    let script = async {
        expect(&mut peer, &["device_del"]).await;
        deleted(&mut peer, ID).await;
        expect_exactly(&mut peer, "object-del", json!({"id": BACKEND}), json!({})).await;
    };
    let (shrunk, ()) = tokio::join!(plugs.resize_memory(size(256)), script);
    assert_eq!(shrunk.unwrap(), 256);
}
