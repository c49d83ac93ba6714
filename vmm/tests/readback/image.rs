//! The guest image.

use std::fs::File;

use serde_json::{Value, json};
use vmm::spec::{Boot, Extension, ExtensionName, ImageDriver, ImageFs, Memory};
use vmm::{BootError, Hypervisor, PathProblem, Qemu};

use crate::Machine;
use crate::common::{Fixture, log};

const SIZE: u64 = (3 << 20) + 4096;

fn with_image(driver: ImageDriver, size: u64) -> Fixture {
    let mut fixture = Fixture::new();
    let path = fixture.dir.path().join("image,readonly=off");
    File::create(&path).unwrap().set_len(size).unwrap();
    fixture.spec.boot = Boot::Image { path, fs: ImageFs::Ext4, driver, verity: None };
    fixture
}

#[tokio::test]
async fn a17_an_image_is_an_nvdimm_that_the_guest_cannot_write() {
    let mut machine = Machine::boot(with_image(ImageDriver::Nvdimm, SIZE)).await;
    let devices = machine.ask("query-memory-devices", json!({}));
    assert_eq!(devices[0]["type"], "nvdimm");
    assert_eq!(devices[0]["data"]["size"], SIZE);
    assert_eq!(machine.property("/machine/peripheral/nvdimm0", "unarmed"), true);
    assert_eq!(machine.property("/objects/image0", "readonly"), true);
    assert_eq!(machine.property("/machine", "nvdimm"), true);
    machine.end().await;
}

#[tokio::test]
async fn a17_an_image_is_a_pmem_device_even_where_memory_cannot_grow() {
    let mut fixture = with_image(ImageDriver::VirtioPmem, SIZE);
    fixture.spec.memory = Memory::new(256, 0, 256).unwrap();
    let mut machine = Machine::boot(fixture).await;
    let devices = machine.ask("query-memory-devices", json!({}));
    assert_eq!((&devices[0]["type"], &devices[0]["data"]["size"]), (&json!("virtio-pmem"), &json!(SIZE)));
    assert_eq!(machine.property("/objects/image0", "readonly"), true);
    machine.end().await;
}

#[tokio::test]
async fn a17_an_image_is_a_disk_of_any_size_that_the_guest_cannot_write() {
    let mut machine = Machine::boot(with_image(ImageDriver::VirtioBlk, (3 << 20) + 512)).await;
    let disks = machine.ask("query-block", json!({}));
    assert_eq!(disks[0]["inserted"]["ro"], true);
    assert_eq!(disks[0]["inserted"]["image"]["virtual-size"], (3 << 20) + 512);
    assert_eq!(disks[0]["qdev"], "/machine/peripheral/disk0/virtio-backend");
    machine.end().await;
}

#[tokio::test]
async fn a17_extension_images_are_disks_with_serial_numbers_that_the_guest_cannot_write() {
    let mut fixture = with_image(ImageDriver::VirtioBlk, SIZE);
    let extension = |name| {
        let path = fixture.dir.path().join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        Extension { name: ExtensionName::new(name).unwrap(), path, verity: None }
    };
    fixture.spec.extensions = ["coco", "gpu"].map(extension).to_vec();
    let mut machine = Machine::boot(fixture).await;
    let disks = machine.ask("query-block", json!({}));
    let disks: Vec<_> = disks.as_array().unwrap().iter().collect();
    let told = |disk: &&Value| (disk["qdev"].clone(), disk["inserted"]["ro"] == true);
    let expected = ["disk0", "disk-coco", "disk-gpu"]
        .map(|id| (Value::from(format!("/machine/peripheral/{id}/virtio-backend")), true));
    assert_eq!(disks.iter().map(told).collect::<Vec<_>>(), expected);
    assert_eq!(machine.property("/machine/peripheral/disk-gpu", "serial"), "extension-gpu");
    machine.end().await;
}

#[tokio::test]
async fn a17_an_image_that_does_not_end_with_a_page_is_no_memory() {
    let fixture = with_image(ImageDriver::Nvdimm, 4097);
    let error = Qemu::new(log()).boot(fixture.spec.clone()).await.err().unwrap();
    assert!(matches!(&error, BootError::Path(path) if path.problem == PathProblem::NotPages), "{error}");
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn a10_slots_and_address_space_are_those_of_the_specification_and_the_image() {
    let mut fixture = with_image(ImageDriver::Nvdimm, SIZE);
    fixture.spec.memory = Memory::new(256, 4, 1024).unwrap().with_room(512).unwrap();
    let mut machine = Machine::boot(fixture).await;
    let memory = machine.property("/machine", "memory");
    assert_eq!(memory["size"], 256_u64 << 20);
    assert_eq!((&memory["slots"], &memory["max-size"]), (&json!(5), &json!((1024_u64 + 512 + 4) << 20)));
    machine.end().await;
}
