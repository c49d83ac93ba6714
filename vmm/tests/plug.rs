//! What comes to a running machine, read back from the real QEMU. That guests use it, and let go of it, is shown where
//! there is a guest with an operating system.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs::File;
use std::num::NonZeroU32;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::monitor::{Machine, Monitor};
use common::storage::Server;
use common::{Fixture, log};
use serde_json::{Value, json};
use vmm::plug::{Disk, DiskBus, MemorySize, PlugError, Pluggable, Pmem, VhostUserDisk};
use vmm::spec::{
    Access, Backing, Block, BlockDriver, BlockOptions, Cache, IoThreads, Memory, PassThrough, PciPlaces,
    Queues, Sectors, Vcpus, VfioPort, VsockSpec, Window,
};
use vmm::vfio::HostDevice;
use vmm::{Hypervisor, Qemu};

/// A fixture with a bridge, and an image of 1 MiB.
fn fixture() -> (Fixture, PathBuf) {
    let mut fixture = Fixture::new();
    fixture.spec.pci = PciPlaces::new(1, 0, Window::default()).unwrap();
    let image = fixture.dir.path().join("disk.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    (fixture, image)
}

fn disk(path: &Path, read_only: bool) -> Pluggable {
    Pluggable::Disk(Disk { path: path.to_owned(), read_only, bus: DiskBus::VirtioBlk })
}

fn property(machine: &mut Machine, path: &str, property: &str) -> Value {
    machine.ask("qom-get", json!({"path": path, "property": property}))
}

#[tokio::test]
async fn b7_disks_are_where_they_are_said_to_be_and_as_they_were_asked_for() {
    let (fixture, image) = fixture();
    let mut machine = Machine::boot(fixture).await;
    let first = machine.vm.plug(disk(&image, true)).await.unwrap();
    let second = machine.vm.plug(disk(&image, true)).await.unwrap();
    assert_eq!((first.at.to_string(), second.at.to_string()), ("02/01".into(), "02/02".into()));
    let blocks = machine.ask("query-block", json!({}));
    let block = blocks
        .as_array()
        .unwrap()
        .iter()
        .find(|block| block["qdev"].as_str().unwrap_or_default().contains(&first.id.to_string()));
    let inserted = &block.unwrap()["inserted"];
    assert_eq!((&inserted["ro"], &inserted["drv"]), (&json!(true), &json!("raw")));
    assert_eq!(inserted["image"]["virtual-size"], 1 << 20);
    let addr = property(&mut machine, &format!("/machine/peripheral/{}", second.id), "addr");
    // Three bits for the function.
    assert_eq!(addr, 2 << 3);
    machine.end().await;
}

#[tokio::test]
async fn b7_what_cannot_be_a_disk_is_refused_and_leaves_nothing() {
    let (fixture, image) = fixture();
    let dir = fixture.dir.path().to_owned();
    let mut machine = Machine::boot(fixture).await;
    let missing = machine.vm.plug(disk(&dir.join("none"), false)).await.unwrap_err();
    assert!(matches!(&missing, PlugError::Open { path, .. } if path.ends_with("none")), "{missing}");
    let fifo = machine.vm.plug(disk(Path::new("/dev/null"), false)).await.unwrap_err();
    assert!(matches!(fifo, PlugError::NotADisk { .. }), "{fifo}");
    assert_eq!(machine.ask("query-fdsets", json!({})), json!([]));
    // The place of what was refused is not lost.
    assert_eq!(machine.vm.plug(disk(&image, false)).await.unwrap().at.to_string(), "02/01");
    machine.end().await;
}

#[tokio::test]
async fn b7_a_bridge_that_is_full_says_what_gives_more_room() {
    let (fixture, image) = fixture();
    let machine = Machine::boot(fixture).await;
    for _ in 0..30 {
        machine.vm.plug(disk(&image, true)).await.unwrap();
    }
    let full = machine.vm.plug(disk(&image, true)).await.unwrap_err().to_string();
    assert_eq!(full, "the machine has no free PCI slot: raise default_bridges");
    machine.end().await;
}

#[tokio::test]
async fn b13_processors_come_one_by_one_up_to_the_most() {
    let (mut fixture, _) = fixture();
    fixture.spec.vcpus = Vcpus::new(1, 4).unwrap();
    let mut machine = Machine::boot(fixture).await;
    assert_eq!(machine.vm.resize_vcpus(3).await.unwrap(), 3);
    assert_eq!(machine.ask("query-cpus-fast", json!({})).as_array().unwrap().len(), 3);
    assert_eq!(machine.vm.resize_vcpus(9).await.unwrap(), 4);
    let slots = machine.ask("query-hotpluggable-cpus", json!({}));
    assert!(slots.as_array().unwrap().iter().all(|slot| slot.get("qom-path").is_some()), "{slots}");
    machine.end().await;
}

#[tokio::test]
async fn b14_b15_memory_comes_in_modules_of_whole_blocks_up_to_the_most() {
    let (fixture, _) = fixture();
    let mut machine = Machine::boot(fixture).await;
    let size = |mib| MemorySize { mib, block_mib: 128 };
    assert_eq!(machine.vm.resize_memory(size(300)).await.unwrap(), 384);
    assert_eq!(machine.vm.resize_memory(size(384)).await.unwrap(), 384);
    assert_eq!(machine.vm.resize_memory(size(1 << 40)).await.unwrap(), 1024);
    let modules = machine.ask("query-memory-devices", json!({}));
    let sizes: Vec<_> = modules.as_array().unwrap().iter().map(|m| m["data"]["size"].clone()).collect();
    assert_eq!(sizes, [json!(128 << 20), json!(640 << 20)]);
    machine.end().await;
}

/// A back end that says nothing of how many pieces it takes is one of 8 to QEMU, and a board has some from the start.
#[tokio::test]
async fn b14_every_slot_takes_a_module_whoever_shares_the_memory() {
    let mut fixture = Fixture::new().with_virtiofs();
    fixture.spec.memory = Memory::new(256, 10, 4096).unwrap();
    fixture.spec.vsock = VsockSpec::VhostUser;
    let mut machine = Machine::boot(fixture).await;
    for module in 1..=10 {
        let mib = 256 + 128 * module;
        assert_eq!(machine.vm.resize_memory(MemorySize { mib, block_mib: 128 }).await.unwrap(), mib);
    }
    assert_eq!(machine.ask("query-memory-devices", json!({})).as_array().unwrap().len(), 10);
    machine.end().await;
}

#[tokio::test]
async fn a38_later_memory_is_in_the_directory_of_that_of_the_boot() {
    let (mut fixture, _) = fixture();
    let directory = fixture.dir.path().join("memory");
    std::fs::create_dir(&directory).unwrap();
    fixture.spec.backing = Backing::Directory(directory.clone());
    let mut machine = Machine::boot(fixture).await;
    machine.vm.resize_memory(MemorySize { mib: 384, block_mib: 128 }).await.unwrap();
    let module = machine.ask("query-memory-devices", json!({}))[0]["data"].take();
    let backend = module["memdev"].as_str().unwrap();
    assert_eq!(property(&mut machine, backend, "mem-path"), directory.to_str().unwrap());
    assert_eq!(property(&mut machine, backend, "share"), true);
    machine.end().await;
}

#[tokio::test]
async fn b14_a_machine_without_slots_says_what_gives_it_some() {
    let (mut fixture, _) = fixture();
    fixture.spec.memory = Memory::new(256, 1, 1024).unwrap();
    let machine = Machine::boot(fixture).await;
    let size = |mib| MemorySize { mib, block_mib: 128 };
    machine.vm.resize_memory(size(384)).await.unwrap();
    let full = machine.vm.resize_memory(size(512)).await.unwrap_err().to_string();
    assert_eq!(full, "the machine has no free memory slot: raise memory_slots");
    machine.end().await;
}

#[tokio::test]
async fn a39_virtio_mem_has_all_that_may_come_and_asks_for_none_of_it() {
    let (mut fixture, _) = fixture();
    fixture.spec.virtio_mem = true;
    let mut machine = Machine::boot(fixture).await;
    let device = machine.ask("query-memory-devices", json!({}))[0].take();
    assert_eq!(device["type"], "virtio-mem");
    assert_eq!((&device["data"]["max-size"], &device["data"]["size"]), (&json!(768 << 20), &json!(0)));
    assert_eq!(device["data"]["requested-size"], 0);
    machine.end().await;
}

/// This guest has no driver for it, so it has none of it for now.
#[tokio::test]
async fn b15_virtio_mem_is_asked_for_what_is_wanted_on_top_of_the_memory_of_the_boot() {
    let (mut fixture, _) = fixture();
    fixture.spec.virtio_mem = true;
    let mut machine = Machine::boot(fixture).await;
    let (vm, monitor) = (&machine.vm, &mut machine.monitor);
    let asking = vm.resize_memory(MemorySize { mib: 500, block_mib: 128 });
    tokio::select! {
        _ = asking => panic!("a guest without a driver has taken memory"),
        () = is_asked_for(monitor, 256) => {}
    }
    // Nobody waits for it any more.
    is_asked_for(monitor, 0).await;
    machine.end().await;
}

/// Waits until the guest is to have so much of virtio-mem, of which it has none.
async fn is_asked_for(monitor: &mut Monitor, mib: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let device = monitor.ask("query-memory-devices", json!({}))[0]["data"].take();
        assert_eq!(device["size"], 0);
        if device["requested-size"] == mib << 20 {
            return;
        }
        assert!(Instant::now() < deadline, "{device}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn b7_a20_a_disk_is_read_and_written_as_the_machine_is_told() {
    let (mut fixture, image) = fixture();
    let cache = Cache { direct: true, no_flush: true };
    let sectors = Sectors::new(4096, 4096).unwrap();
    let queues = Queues::new(2, 64).unwrap();
    fixture.spec.block = Block {
        driver: BlockDriver::VirtioBlk,
        options: BlockOptions::new(Access::CachedThreads(cache), sectors, queues),
        threads: IoThreads::new(false, 2).unwrap(),
    };
    let mut machine = Machine::boot(fixture).await;
    let plugged = machine.vm.plug(disk(&image, false)).await.unwrap();
    let path = format!("/machine/peripheral/{}", plugged.id);
    let read = ["logical_block_size", "num-queues", "queue-size"].map(|name| machine.property(&path, name));
    assert_eq!(read, [4096, 2, 64]);
    assert!(machine.property(&path, "iothread").as_str().unwrap().contains("indep-iothread"));
    let blocks = machine.ask("query-named-block-nodes", json!({}));
    let node = blocks.as_array().unwrap().iter().find(|node| node["node-name"] == plugged.id.to_string());
    assert_eq!(node.unwrap()["cache"], json!({"writeback": true, "direct": true, "no-flush": true}));
    machine.end().await;
}

#[tokio::test]
async fn b7_scsi_disks_are_units_of_the_controller_where_there_is_one() {
    let (fixture, image) = fixture();
    let scsi = || Pluggable::Disk(Disk { path: image.clone(), read_only: true, bus: DiskBus::Scsi });
    let mut machine = Machine::boot(fixture).await;
    for unit in 0..2 {
        let plugged = machine.vm.plug(scsi()).await.unwrap();
        assert_eq!(plugged.at.to_string(), format!("0:{unit}"));
        let disk = format!("/machine/peripheral/{}", plugged.id);
        assert_eq!(
            (property(&mut machine, &disk, "scsi-id"), property(&mut machine, &disk, "lun")),
            (0.into(), unit.into())
        );
        let bus = property(&mut machine, &disk, "parent_bus");
        assert_eq!(bus, "/machine/peripheral/scsi0/virtio-backend/scsi0.0");
        assert_eq!(property(&mut machine, &disk, "share-rw"), true);
    }
    machine.end().await;

    let (mut fixture, _) = self::fixture();
    fixture.spec.block.driver = BlockDriver::VirtioBlk;
    let machine = Machine::boot(fixture).await;
    let refused = machine.vm.plug(scsi()).await.unwrap_err().to_string();
    assert_eq!(refused, "the machine takes no SCSI disks: set block_device_driver to virtio-scsi");
    machine.end().await;
}

#[tokio::test]
async fn b8_files_are_nvdimms_of_their_size_that_stay() {
    let (mut fixture, image) = fixture();
    File::options().write(true).open(&image).unwrap().set_len(4 << 20).unwrap();
    fixture.spec.block.driver = BlockDriver::Nvdimm;
    fixture.spec.memory = Memory::new(256, 2, 1024).unwrap().with_room(64).unwrap();
    let mut machine = Machine::boot(fixture).await;
    let pmem = |read_only| Pluggable::Pmem(Pmem { path: image.clone(), read_only });
    let first = machine.vm.plug(pmem(true)).await.unwrap();
    let second = machine.vm.plug(pmem(false)).await.unwrap();
    assert_eq!((first.at.to_string(), second.at.to_string()), ("/dev/pmem0".into(), "/dev/pmem1".into()));
    let memory = machine.ask("query-memory-devices", json!({}));
    let kinds: Vec<_> = memory.as_array().unwrap().iter().map(|m| (&m["type"], &m["data"]["size"])).collect();
    assert_eq!(kinds, [(&json!("nvdimm"), &json!(4 << 20)); 2]);
    for (device, unarmed) in [(&first, true), (&second, false)] {
        let device = format!("/machine/peripheral/{}", device.id);
        assert_eq!(property(&mut machine, &device, "unarmed"), unarmed);
    }
    // The guest has the file by now, and QEMU nothing but that.
    assert_eq!(machine.ask("query-fdsets", json!({})), json!([]));
    let full = machine.vm.plug(pmem(true)).await.unwrap_err().to_string();
    assert_eq!(full, "the machine has no free memory slot: raise memory_slots");
    assert!(matches!(machine.vm.unplug(&first.id).await, Err(PlugError::Stays(_))));
    // The same slots are those of memory modules.
    let more = MemorySize { mib: 384, block_mib: 128 };
    assert_eq!(machine.vm.resize_memory(more).await.unwrap_err().to_string(), full);
    machine.end().await;
}

#[tokio::test]
async fn b8_a_file_that_is_no_memory_is_refused_and_leaves_nothing() {
    let (mut fixture, image) = fixture();
    File::options().write(true).open(&image).unwrap().set_len(1000).unwrap();
    fixture.spec.block.driver = BlockDriver::Nvdimm;
    let mut machine = Machine::boot(fixture).await;
    let refused = machine.vm.plug(Pluggable::Pmem(Pmem { path: image, read_only: true })).await;
    assert!(matches!(refused, Err(PlugError::Qmp(_))), "{refused:?}");
    assert_eq!(machine.ask("query-memory-devices", json!({})), json!([]));
    assert_eq!(machine.ask("query-fdsets", json!({})), json!([]));
    let objects = machine.ask("qom-list", json!({"path": "/objects"}));
    assert!(!objects.to_string().contains("plugged"), "{objects}");
    machine.end().await;
}

#[tokio::test]
async fn b10_a_disk_of_another_program_is_where_it_is_said_to_be() {
    let (fixture, image) = fixture();
    let socket = fixture.dir.path().join("disk.sock");
    let _server = Server::start(&image, &socket);
    let mut machine = Machine::boot(fixture).await;
    let disk = VhostUserDisk::new(socket, NonZeroU32::new(1)).unwrap();
    let plugged = machine.vm.plug(Pluggable::VhostUserDisk(disk)).await.unwrap();
    assert_eq!(plugged.at.to_string(), "02/01");
    let device = format!("/machine/peripheral/{}", plugged.id);
    assert_eq!(property(&mut machine, &device, "chardev"), plugged.id.to_string());
    assert_eq!(
        property(&mut machine, &device, "parent_bus"),
        "/machine/peripheral/pci-bridge-0/pci-bridge-0"
    );
    machine.end().await;
}

#[tokio::test]
async fn b10_a_disk_that_nobody_serves_is_refused_and_leaves_nothing() {
    let (fixture, _) = fixture();
    let socket = fixture.dir.path().join("none.sock");
    let mut machine = Machine::boot(fixture).await;
    let disk = VhostUserDisk::new(socket, NonZeroU32::new(1)).unwrap();
    let refused = machine.vm.plug(Pluggable::VhostUserDisk(disk)).await.unwrap_err().to_string();
    assert!(refused.starts_with("open ") && refused.contains("none.sock: No such file"), "{refused}");
    assert!(!machine.ask("query-chardev", json!({})).to_string().contains("plugged"));
    machine.end().await;
}

/// A sysfs with a device that this host has not got.
fn sysfs(dir: &Path, address: &str) -> HostDevice {
    let device = dir.join("bus/pci/devices").join(address);
    let group = dir.join("kernel/iommu_groups/1");
    std::fs::create_dir_all(&device).unwrap();
    std::fs::create_dir_all(group.join("devices")).unwrap();
    std::fs::create_dir(dir.join("vfio-pci")).unwrap();
    for (file, text) in [("class", "0x030200"), ("vendor", "0x10de"), ("device", "0x2330")] {
        std::fs::write(device.join(file), text).unwrap();
    }
    std::fs::write(device.join("config"), [0; 4096]).unwrap();
    symlink(dir.join("vfio-pci"), device.join("driver")).unwrap();
    symlink(&group, device.join("iommu_group")).unwrap();
    symlink(&device, group.join("devices").join(address)).unwrap();
    HostDevice::with_its_group(dir, address).unwrap().remove(0)
}

/// QEMU looks at names and types of all properties before it looks for the device.
#[tokio::test]
async fn b11_qemu_knows_all_of_what_it_is_told_of_a_device_of_the_host() {
    let address = "0000:ff:1f.7";
    for port in [VfioPort::Bridge, VfioPort::Root, VfioPort::Switch] {
        let (mut fixture, _) = fixture();
        fixture.spec.pci = PciPlaces::new(1, 1, Window::default()).unwrap().with_switch(1).unwrap();
        fixture.spec.pass_through = PassThrough::Hot(port);
        let device = sysfs(&fixture.dir.path().join("sys"), address);
        let machine = Machine::boot(fixture).await;
        let refused = machine.vm.plug(Pluggable::HostDevice(device)).await.unwrap_err().to_string();
        let end = format!("/{address}: no such host device");
        assert!(refused.contains(&end), "{port:?}: {refused}");
        machine.end().await;
    }
}

#[tokio::test]
async fn b11_a_machine_with_a_device_that_is_not_there_does_not_start() {
    let (mut fixture, _) = fixture();
    let devices = vec![sysfs(&fixture.dir.path().join("sys"), "0000:ff:1f.7")];
    fixture.spec.pass_through = PassThrough::Cold { devices, port: VfioPort::Bridge };
    let refused = Qemu::new(log()).boot(fixture.spec.clone()).await.err().unwrap().to_string();
    assert!(refused.contains("/0000:ff:1f.7: no such host device"), "{refused}");
    fixture.assert_nothing_left();
}

/// What the way to a device is made of, shown by one that QEMU has.
#[tokio::test]
async fn b11_a_device_behind_a_switch_is_at_the_slots_that_are_planned() {
    let (mut fixture, _) = fixture();
    fixture.spec.pci = PciPlaces::new(1, 1, Window::default()).unwrap().with_switch(2).unwrap();
    let mut machine = Machine::boot(fixture).await;
    let device =
        json!({"driver": "virtio-rng-pci", "id": "stand-in", "rng": "rng0", "bus": "swdp1", "addr": "0"});
    machine.ask("device_add", device);
    let way = [("stand-in", 0, "swdp1/swdp1"), ("swdp1", 1, "swup0/swup0"), ("swup0", 0, "rp1/rp1")];
    for (device, slot, bus) in way {
        let device = format!("/machine/peripheral/{device}");
        assert_eq!(property(&mut machine, &device, "addr"), slot << 3);
        assert_eq!(property(&mut machine, &device, "parent_bus"), format!("/machine/peripheral/{bus}"));
    }
    assert_eq!(property(&mut machine, "/machine/peripheral/rp1", "addr"), 8 << 3);
    assert_eq!(property(&mut machine, "/machine/peripheral/rp1", "parent_bus"), "/machine/q35/pcie.0");
    machine.end().await;
}
