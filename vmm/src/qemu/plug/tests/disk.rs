//! How the host reads and writes disks.

use super::*;
use crate::spec::{Access, BlockDriver, BlockOptions, Cache, IoThreads, Queues, Sectors};

async fn with(driver: BlockDriver, access: Access) -> (Plugs, Peer) {
    let options = BlockOptions::new(access, Sectors::new(512, 4096).unwrap(), Queues::new(2, 64).unwrap());
    let threads = IoThreads::new(false, 1).unwrap();
    machine_with(|board| board.block = spec::Block { driver, options, threads }).await
}

#[tokio::test]
async fn b7_a_disk_is_read_and_written_by_what_the_operator_chooses() {
    let cache = |direct, no_flush| Cache { direct, no_flush };
    for (access, aio, caching) in [
        (Access::Threads, "threads", None),
        (Access::IoUring, "io_uring", None),
        (Access::CachedThreads(cache(false, true)), "threads", Some((false, true))),
        (Access::CachedIoUring(cache(true, false)), "io_uring", Some((true, false))),
        (Access::Native { no_flush: true }, "native", Some((true, true))),
    ] {
        let (plugs, mut peer) = with(BlockDriver::VirtioBlk, access).await;
        let (_image, disk) = image();
        let file = json!({"driver": "file", "filename": "/dev/fdset/64", "aio": aio});
        let mut node =
            json!({"driver": "raw", "node-name": "plugged-disk-1", "read-only": false, "file": file});
        if let Some((direct, no_flush)) = caching {
            node["cache"] = json!({"direct": direct, "no-flush": no_flush});
        }
        let script = async {
            expect_exactly(&mut peer, "add-fd", json!({"fdset-id": 64}), json!({})).await;
            expect_exactly(&mut peer, "blockdev-add", node, json!({})).await;
            expect(&mut peer, &["device_add"]).await;
        };
        let (plugged, ()) = tokio::join!(plugs.plug(disk), script);
        plugged.unwrap();
    }
}

#[tokio::test]
async fn b7_a_disk_s_device_has_numbers_and_truths_and_no_words_for_them() {
    let virtio = json!({
        "driver": "virtio-blk-pci", "id": "plugged-disk-1", "drive": "plugged-disk-1", "serial": "plugged-disk-1",
        "config-wce": false, "share-rw": true, "logical_block_size": 512, "physical_block_size": 4096,
        "num-queues": 2, "queue-size": 64, "iothread": "indep-iothread0", "bus": "pci-bridge-0", "addr": "1",
    });
    let scsi = json!({
        "driver": "scsi-hd", "id": "plugged-disk-1", "drive": "plugged-disk-1", "serial": "plugged-disk-1",
        "bus": "scsi0.0", "scsi-id": 0, "lun": 0, "share-rw": true, "logical_block_size": 512,
        "physical_block_size": 4096,
    });
    for (driver, bus, device) in
        [(BlockDriver::VirtioBlk, DiskBus::VirtioBlk, virtio), (BlockDriver::VirtioScsi, DiskBus::Scsi, scsi)]
    {
        let (plugs, mut peer) = with(driver, Access::Threads).await;
        let (file, _) = image();
        let disk = Disk { path: file.path().to_owned(), read_only: false, bus };
        let script = async {
            expect(&mut peer, &["add-fd", "blockdev-add"]).await;
            expect_exactly(&mut peer, "device_add", device, json!({})).await;
        };
        let (plugged, ()) = tokio::join!(plugs.plug(Pluggable::Disk(disk)), script);
        plugged.unwrap();
    }
}

#[tokio::test]
async fn d16_a_disk_has_the_size_of_what_is_behind_it_and_nobodys_wish() {
    let (plugs, mut peer) = machine().await;
    let (image, disk) = image();
    let script = expect(&mut peer, &["add-fd", "blockdev-add", "device_add"]);
    let (plugged, ()) = tokio::join!(plugs.plug(disk), script);
    image.as_file().set_len(4096).unwrap();
    let (id, asked) = (plugged.unwrap().id, json!({"node-name": "plugged-disk-1", "size": 4096}));
    let script = expect_exactly(&mut peer, "block_resize", asked, json!({}));
    let (size, ()) = tokio::join!(plugs.resize_disk(&id), script);
    assert_eq!(size.unwrap(), 4096);
    let (refused, ()) = tokio::join!(plugs.resize_disk(&id), refuse(&mut peer, "block_resize"));
    assert!(matches!(refused, Err(PlugError::Qmp(_))));
    assert!(matches!(plugs.resize_disk(&DeviceId::of("nic")).await, Err(PlugError::Unknown(_))));
}
