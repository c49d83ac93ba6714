//! What guests start from.

use super::*;

#[test]
fn an_image_is_a_raw_disk_that_the_guest_cannot_write() {
    let boot = Boot::Image {
        path: "/guest/image".into(),
        fs: ImageFs::Ext4,
        driver: ImageDriver::VirtioBlk,
        verity: None,
    };
    let lines = lines(
        &VmSpec { boot, ..spec() },
        &Inherited { image: Some(ImageEnd { fd: 9, size: 64 << 20 }), ..inherited() },
    );
    assert!(has(&lines, "-add-fd fd=9,set=1"));
    assert!(has(
        &lines,
        r#"-blockdev {"driver":"raw","node-name":"image0","read-only":true,"file":{"driver":"file","filename":"/dev/fdset/1"}}"#
    ));
    assert!(has(
        &lines,
        r#"-device {"driver":"virtio-blk-pci","id":"disk0","drive":"image0","config-wce":false,"share-rw":true,"serial":"image0"}"#
    ));
    assert!(!lines.iter().any(|line| line.starts_with("-initrd")));
    let append = lines.last().unwrap();
    assert!(
        append
            .contains(" root=/dev/vda1 rootflags=data=ordered,errors=remount-ro ro rootfstype=ext4 console=")
    );
    assert!(
        append.contains(
            " quiet systemd.show_status=false panic=1 oops=panic nr_cpus=8 scsi_mod.scan=none swiotlb=noforce systemd.unit=kata-containers.target "
        )
    );
}

#[test]
fn a4_a17_an_image_that_is_memory_has_its_own_room_and_is_not_cached_twice() {
    let image = Some(ImageEnd { fd: 9, size: (64 << 20) + 4096 });
    let with = |driver, memory: Memory, fs| {
        let boot = Boot::Image { path: "/guest/image".into(), fs, driver, verity: None };
        lines(&VmSpec { boot, memory, ..spec() }, &Inherited { image, ..inherited() })
    };
    let memory = Memory::new(2048, 10, 8192).unwrap();
    let nvdimm = with(ImageDriver::Nvdimm, memory, ImageFs::Ext4);
    assert!(has(&nvdimm, "-machine q35,memory-backend=memory0,nvdimm=on"));
    assert!(has(&nvdimm, "-m 2048M,slots=11,maxmem=8257M"));
    assert!(has(
        &nvdimm,
        r#"-object {"qom-type":"memory-backend-file","id":"image0","size":67112960,"mem-path":"/proc/self/fd/9","share":true,"readonly":true}"#
    ));
    assert!(has(&nvdimm, r#"-device {"driver":"nvdimm","id":"nvdimm0","memdev":"image0","unarmed":true}"#));
    let root = " root=/dev/pmem0p1 rootflags=dax,data=ordered,errors=remount-ro ro rootfstype=ext4 console=";
    assert!(nvdimm.last().unwrap().contains(root), "{nvdimm:?}");

    let fixed = Memory::new(512, 0, 512).unwrap();
    let pmem = with(ImageDriver::VirtioPmem, fixed, ImageFs::Erofs);
    assert!(has(&pmem, "-machine q35,memory-backend=memory0"));
    assert!(has(&pmem, "-m 512M,maxmem=577M"));
    assert!(has(&pmem, r#"-device {"driver":"virtio-pmem-pci","id":"pmem0","memdev":"image0"}"#));
    assert!(pmem.last().unwrap().contains(" root=/dev/pmem0p1 rootflags=dax ro rootfstype=erofs "));

    let most = Memory::new(512, 256, 1024).unwrap();
    assert!(has(&with(ImageDriver::Nvdimm, most, ImageFs::Xfs), "-m 512M,slots=256,maxmem=1089M"));
}

fn verity() -> Verity {
    Verity {
        root_hash: vec![0xab; 32],
        salt: vec![0x01, 0xff],
        data_blocks: 10,
        data_block_size: 4096,
        hash_block_size: 1024,
    }
}

pub(in crate::qemu::command) fn extensions() -> Vec<Extension> {
    let extension = |name, verity| Extension {
        name: ExtensionName::new(name).unwrap(),
        path: "/guest/extension".into(),
        verity,
    };
    vec![extension("coco", Some(verity())), extension("gpu", None)]
}

#[test]
fn a4_an_image_that_is_checked_is_mounted_through_what_checks_it() {
    let image = Some(ImageEnd { fd: 9, size: 64 << 20 });
    let with = |driver, verity| {
        let boot =
            Boot::Image { path: "/guest/image".into(), fs: ImageFs::Ext4, driver, verity: Some(verity) };
        lines(&VmSpec { boot, ..spec() }, &Inherited { image, ..inherited() }).pop().unwrap()
    };
    let hash = "ab".repeat(32);
    let disk = format!(
        " dm-mod.create=\"root,,,ro,0 80 verity 1 /dev/vda1 /dev/vda2 4096 1024 10 0 sha256 {hash} 01ff\" \
         root=/dev/dm-0 rootflags=data=ordered,errors=remount-ro ro rootfstype=ext4 console="
    );
    let append = with(ImageDriver::VirtioBlk, verity());
    assert!(append.contains(&disk), "{append}");
    let append = with(ImageDriver::Nvdimm, Verity { salt: Vec::new(), ..verity() });
    assert!(
        append.contains(&format!(" verity 1 /dev/pmem0p1 /dev/pmem0p2 4096 1024 10 0 sha256 {hash} -\" ")),
        "{append}"
    );
    assert!(!append.contains("dax"), "{append}");
}

#[test]
fn a17_extension_images_are_disks_known_by_name_after_the_image() {
    let extensions = extensions();
    let boot = Boot::Image {
        path: "/guest/image".into(),
        fs: ImageFs::Ext4,
        driver: ImageDriver::VirtioBlk,
        verity: None,
    };
    let inherited =
        Inherited { image: Some(ImageEnd { fd: 9, size: 1 << 20 }), extensions: vec![20, 21], ..inherited() };
    let all = lines(&VmSpec { boot, extensions: extensions.clone(), ..spec() }, &inherited);
    let drives: Vec<_> = all.iter().filter(|line| line.contains("virtio-blk-pci")).collect();
    assert!(drives[0].contains(r#""id":"disk0""#), "{drives:?}");
    assert!(drives[1].contains(r#""id":"disk-coco","drive":"extension-coco","config-wce":false,"share-rw":true,"serial":"extension-coco""#));
    assert!(has(&all, "-add-fd fd=20,set=2"));
    assert!(has(
        &all,
        r#"-blockdev {"driver":"raw","node-name":"extension-gpu","read-only":true,"file":{"driver":"file","filename":"/dev/fdset/3"}}"#
    ));
    let hash = "ab".repeat(32);
    let words = format!(
        " kata.extension.coco.verity_params=root_hash={hash},salt=01ff,data_blocks=10,data_block_size=4096,\
         hash_block_size=1024 kata.extension.gpu.verity_params"
    );
    assert!(all.last().unwrap().contains(&words), "{all:?}");
    let twice = VmSpec { extensions: vec![extensions[0].clone(), extensions[0].clone()], ..spec() };
    assert_eq!(twice.check().unwrap_err().to_string(), "two extension images are called \"coco\"");
}
