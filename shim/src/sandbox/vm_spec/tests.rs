//! What keys of the configuration make of the machine.

mod keys;
mod properties;

use std::{collections::HashMap, fs, os::unix::fs::PermissionsExt};

use configuration::LoadError;
use oci_spec::runtime::SpecBuilder;
use slog::{Discard, o};
use tempfile::TempDir;
use vmm::spec::{BlockDriver, Boot, Cache, ImageDriver, ImageFs, Machine, Queues};

use super::*;
use crate::sandbox::Provisions;

/// A configuration that says `keys` beside the least there is to say, in a directory of files it may name `@DIR@`.
fn configuration(keys: &str) -> (TempDir, Configuration) {
    let (dir, loaded) = load(keys);
    (dir, loaded.unwrap())
}

fn load(keys: &str) -> (TempDir, std::result::Result<Configuration, LoadError>) {
    let dir = tempfile::tempdir().unwrap();
    for file in ["kernel", "initrd", "image", "firmware"] {
        fs::write(dir.path().join(file), [1; 65536]).unwrap();
    }
    let at = dir.path().display();
    let least = [
        "path = '/bin/true'",
        "kernel = '@DIR@/kernel'",
        "initrd = '@DIR@/initrd'",
        "accelerator = 'tcg'",
        "vsock = 'vhost-user'",
        "default_maxvcpus = 1",
        "default_memory = 256",
    ];
    let says = |key: &str| keys.lines().any(|line| line.split(' ').next() == Some(key));
    let usual = least.iter().filter(|line| {
        let key = line.split(' ').next().unwrap();
        !(says(key) || key == "initrd" && says("image"))
    });
    let usual: Vec<_> = usual.copied().collect();
    let text = format!("[hypervisor.qemu]\n{}\n{keys}\n", usual.join("\n"));
    let path = dir.path().join("configuration.toml");
    fs::write(&path, text.replace("@DIR@", &at.to_string())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    (dir, Configuration::load(Some(&path), &HashMap::new()).map(|loaded| loaded.configuration))
}

fn planned(configuration: &Configuration, spec: &Spec) -> Result<MachinePlan> {
    let provisions = Provisions::default();
    let plan =
        Plan { namespace: "k8s.io", id: "pod", spec, hooks: None, provisions: &provisions, configuration };
    of(configuration, &plan, Path::new("/run/pod"), &log())
}

fn log() -> Logger {
    Logger::root(Discard, o!())
}

/// A machine by a configuration that says `keys`, or why there is none.
fn machine(keys: &str, spec: &Spec) -> Result<VmSpec> {
    planned(&configuration(keys).1, spec).map(|plan| plan.spec)
}

fn of_keys(keys: &str) -> VmSpec {
    machine(keys, &Spec::default()).unwrap()
}

#[test]
fn a20_keys_of_block_devices_reach_the_machine() {
    let usual = of_keys("").block;
    assert_eq!((usual.driver, usual.options.access().aio()), (BlockDriver::VirtioBlk, "io_uring"));
    let block = of_keys(
        "block_device_driver = 'virtio-blk'\nblock_device_aio = 'native'\nblock_device_cache_set = true\n\
         block_device_cache_direct = true\nblock_device_logical_sector_size = 4096\nnum_queues = 2\nqueue_size = 256\n\
         enable_iothreads = true\nindep_iothreads = 3",
    )
    .block;
    assert_eq!(block.driver, BlockDriver::VirtioBlk);
    assert_eq!(block.options.access().aio(), "native");
    assert_eq!(block.options.access().cache(), Some(Cache { direct: true, no_flush: false }));
    assert_eq!(block.options.sectors().physical(), Some(4096));
    assert_eq!(block.options.queues(), Queues::new(2, 256).unwrap());
    assert!(block.threads.own());
    assert_eq!(block.threads.independent().count(), 3);
}

#[test]
fn a17_a26_keys_of_images_and_firmware_reach_the_machine() {
    let image = |keys: &str| of_keys(&format!("image = '@DIR@/image'\n{keys}")).boot;
    let driver = |boot: Boot| match boot {
        Boot::Image { driver, .. } => driver,
        Boot::Initrd(_) => panic!("an image was asked for"),
    };
    assert_eq!(driver(image("")), ImageDriver::Nvdimm);
    assert_eq!(driver(image("disable_image_nvdimm = true")), ImageDriver::VirtioBlk);
    assert_eq!(driver(image("vm_rootfs_driver = 'virtio-pmem'")), ImageDriver::VirtioPmem);
    assert_eq!(of_keys("memory_offset = 512").memory.room_mib(), 512);
    let firmware = of_keys("firmware = '@DIR@/firmware'\nfirmware_volume = '@DIR@/image'").firmware;
    assert!(matches!(firmware, vmm::spec::Firmware::Flash { variables: Some(_), .. }), "{firmware:?}");
}

#[test]
fn a4_a17_what_images_are_checked_by_reaches_the_machine() {
    let hash = "1f".repeat(32);
    let params = format!("root_hash={hash},salt=-,data_blocks=3,data_block_size=4096,hash_block_size=512");
    let spec = of_keys(&format!(
        "image = '@DIR@/image'\nkernel_verity_params = '{params}'\n\
         guest_extension_images = [{{name = 'coco', path = '@DIR@/image', verity_params = '{params}'}}]"
    ));
    let Boot::Image { verity: Some(verity), .. } = spec.boot else { panic!("no image that is checked") };
    assert_eq!(verity.root_hash, vec![0x1f; 32]);
    assert_eq!((verity.salt.len(), verity.data_blocks), (0, 3));
    assert_eq!((verity.data_block_size, verity.hash_block_size), (4096, 512));
    assert_eq!(spec.extensions[0].name.as_str(), "coco");
    assert_eq!(spec.extensions[0].verity.as_ref(), Some(&verity));
}

#[test]
fn a5_a8_a_board_without_hot_plug_has_room_for_nothing_that_comes_later() {
    let spec =
        of_keys("machine_type = 'microvm'\nimage = '@DIR@/image'\ndefault_bridges = 2\nmemory_offset = 8");
    assert!(matches!(spec.machine, Machine::Microvm(_)));
    assert_eq!((spec.memory.growth(), spec.pci.bridges()), (None, 0));
    assert!(matches!(spec.boot, Boot::Image { driver: ImageDriver::VirtioBlk, .. }));
}

#[test]
fn a7_a15_a30_keys_of_devices_and_places_reach_the_machine() {
    let spec = of_keys(
        "enable_iommu_platform = true\nreclaim_guest_freed_memory = true\npcie_root_port = 2\npcie_switch_port = 3\n\
         enable_numa = true\nnuma_mapping = ['0']",
    );
    assert_eq!(spec.virtio, vmm::spec::VirtioPci::BehindIommu);
    assert!(spec.reclaim_freed_memory && spec.numa.is_some());
    assert_eq!((spec.pci.root_ports(), spec.pci.switch_ports()), (2, 3));
    assert_eq!(of_keys("").virtio, vmm::spec::VirtioPci::Usual);
}

#[test]
fn b11_when_and_where_devices_of_the_host_come_reaches_the_machine() {
    use vmm::spec::{PassThrough, VfioPort};
    let (devices, port) = (Vec::new(), VfioPort::Switch);
    let cold = of_keys("cold_plug_vfio = 'switch-port'").pass_through;
    assert_eq!(cold, PassThrough::Cold { devices, port });
    let hot = of_keys("hotplug_vfio_on_root_bus = true").pass_through;
    assert_eq!(hot, PassThrough::Hot(VfioPort::Root));
    assert_eq!(of_keys("").pass_through, PassThrough::Never);
}

#[test]
fn a28_an_annotation_asks_for_memory_of_enclaves() {
    let annotated = |amount: &str| {
        let annotations = [(SGX_EPC.to_owned(), amount.to_owned())];
        SpecBuilder::default().annotations(HashMap::from(annotations)).build().unwrap()
    };
    let error = machine("", &annotated("64M")).unwrap_err().to_string();
    assert!(error.contains("annotation sgx.intel.com/epc: SGX memory of \"64M\""), "{error}");
    let error = machine("", &annotated("64Mi")).unwrap_err().to_string();
    assert!(error.contains("SGX memory cannot be had with TCG"), "{error}");
}

#[test]
fn a33_rootless_reaches_the_machine() {
    assert!(!of_keys("").rootless);
    let spec = of_keys("rootless = true\nshared_fs = 'virtio-fs'\nvirtio_fs_daemon = '/bin/true'");
    assert!(spec.rootless);
}

#[test]
fn a36_nydusd_serves_the_share_below_the_place_where_the_guest_mounts_it() {
    use vmm::spec::{FsServer, ShareKind};
    let keys = "shared_fs = 'virtio-fs-nydus'\nvirtio_fs_daemon = '/bin/true'\nvirtio_fs_queue_size = 512";
    let share = of_keys(keys).share.unwrap();
    let ShareKind::VirtioFs(fs) = &share.kind else { panic!("{share:?}") };
    assert_eq!(
        (fs.server, fs.queue_size, fs.daemon.as_path()),
        (FsServer::Nydusd, 512, Path::new("/bin/true"))
    );
    assert_eq!(fs.extra_args.iter().count(), 0, "the default arguments are virtiofsd's");
    assert_eq!(mount_point_of(&share), "/run/kata-containers/shared");
    assert_eq!(format!("{}{}", mount_point_of(&share), vmm::NYDUSD_MOUNT_POINT), share::GUEST_DIR);
    let share = of_keys("shared_fs = 'virtio-9p'").share.unwrap();
    assert_eq!(mount_point_of(&share), share::GUEST_DIR);
}

#[test]
fn a40_the_pods_label_is_the_machines_unless_it_is_not_to_be() {
    let label = "system_u:system_r:container_kvm_t:s0:c1,c2";
    let labelled = |label: &str| -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"], "selinuxLabel": label},
        }))
        .unwrap()
    };
    let of = |keys: &str, label: &str| machine(keys, &labelled(label)).unwrap();
    assert_eq!(of("", label).selinux.unwrap().as_str(), label);
    assert_eq!(of("", "").selinux, None);
    assert_eq!(of("disable_selinux = true", label).selinux, None);
    let text = machine("", &labelled("a b")).unwrap_err().to_string();
    assert!(text.contains("process.selinuxLabel"), "{text}");
    let told = |keys: &str| of(keys, "").kernel_params.iter().any(|word| word.to_string() == "selinux=1");
    assert!(!told("") && told("disable_guest_selinux = false"));
}
