//! What keys may say about the machine's devices.

use vmm::spec::{Access, BlockDriver, Boot, ImageDriver, Queues};

use super::firmware::amd;
use super::values::refused;
use super::{Place, problems, words};
use crate::{Rates, SharedFs, VhostUserStore};

#[test]
fn a20_block_devices_are_what_qemu_can_make_of_them() {
    let place = Place::new();
    let (driver, aio) = ("hypervisor.qemu.block_device_driver", "hypervisor.qemu.block_device_aio");
    let logical = "hypervisor.qemu.block_device_logical_sector_size";
    refused(
        &place,
        &[
            (
                "hypervisor.qemu.block_device_driver = 'virtio-mmio'",
                driver,
                "nothing can be plugged into those",
            ),
            ("hypervisor.qemu.block_device_driver = 'virtio-blk-ccw'", driver, "is for s390x"),
            ("hypervisor.qemu.block_device_driver = 'ide'", driver, "is unknown; use virtio-scsi"),
            ("hypervisor.qemu.block_device_aio = 'native'", aio, "set block_device_cache_set"),
            ("hypervisor.qemu.block_device_logical_sector_size = 1000", logical, "not a power of two"),
            (
                "hypervisor.qemu = {block_device_logical_sector_size = 4096, block_device_physical_sector_size = 512}",
                logical,
                "lower it",
            ),
            ("hypervisor.qemu.queue_size = 100", "hypervisor.qemu.queue_size", "not a power of two"),
            ("hypervisor.qemu.indep_iothreads = 65", "hypervisor.qemu.indep_iothreads", "from 0 to 64"),
        ],
    );
    let loaded = place.load_with(
        "[hypervisor.qemu]\nblock_device_driver = 'virtio-blk'\nblock_device_aio = 'native'\n\
         block_device_cache_set = true\nblock_device_cache_direct = true\nqueue_size = 0\nnum_queues = 0\n",
    );
    let block = loaded.unwrap().configuration.hypervisor.block;
    assert_eq!(block.driver, BlockDriver::VirtioBlk);
    assert_eq!(block.options.access(), Access::Native { no_flush: false });
    assert_eq!(block.options.queues(), Queues::new(1, 128).unwrap());
    let loaded = place.load_with("hypervisor.qemu.block_device_cache_direct = true").unwrap();
    assert!(loaded.warnings[0].concerns("hypervisor.qemu.block_device_cache_set"));
    assert_eq!(loaded.configuration.hypervisor.block.options.access(), Access::IoUring);
}

const HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn verity_params() -> String {
    format!("root_hash={HASH},salt=0a0b,data_blocks=16,data_block_size=4096,hash_block_size=4096")
}

#[test]
fn a4_an_image_is_checked_by_what_its_key_says() {
    let place = Place::new();
    let key = "hypervisor.qemu.kernel_verity_params";
    let image = "hypervisor.qemu.initrd = ''\nhypervisor.qemu.image = '@DIR@/image'\n";
    let loaded = place.load_with(&format!("{image}{key} = '{}'", verity_params())).unwrap();
    let Boot::Image { verity: Some(verity), .. } = loaded.configuration.hypervisor.boot else {
        panic!("no image that is checked")
    };
    assert_eq!((verity.root_hash[31], verity.salt, verity.data_blocks), (0xff, vec![10, 11], 16));
    refused(
        &place,
        &[(&format!("{image}{key} = 'root_hash=00'"), key, "root_hash is \"00\"; write root_hash=<64")],
    );
    let loaded = place.load_with(&format!("{key} = '{}'", verity_params())).unwrap();
    assert!(loaded.warnings[0].concerns(key), "{:?}", loaded.warnings);
}

#[test]
fn a17_extension_images_have_names_of_their_own_files_and_what_they_are_checked_by() {
    let place = Place::new();
    let key = "hypervisor.qemu.guest_extension_images";
    let list = |items: &str| format!("{key} = [{items}]");
    let (good, plain) = (
        format!("{{name = 'coco', path = '@DIR@/image', verity_params = '{}'}}", verity_params()),
        "{name = 'gpu', path = '@DIR@/image'}",
    );
    let images = place
        .load_with(&list(&format!("{good}, {plain}")))
        .unwrap()
        .configuration
        .hypervisor
        .extension_images;
    let told: Vec<_> = images.iter().map(|image| (image.name.as_str(), image.verity.is_some())).collect();
    assert_eq!(told, [("coco", true), ("gpu", false)]);
    refused(
        &place,
        &[
            (&list(&format!("{plain}, {plain}")), key, "two of them are called \"gpu\""),
            (&list("{path = '@DIR@/image'}"), key, "name of an extension image \"\" is not 1 to 10 letters"),
            (
                &list("{name = 'elevenchars', path = '@DIR@/image'}"),
                key,
                "name of an extension image \"elevenchars\"",
            ),
            (&list("{name = 'gpu', path = '@DIR@/absent'}"), key, "gpu: path: "),
            (
                &list("{name = 'gpu', path = '@DIR@/image', verity_params = 'x=1'}"),
                key,
                "gpu: verity_params: root_hash",
            ),
            (&list("{name = 'gpu', path = '@DIR@/image', size = 1}"), key, "\"size\" is unknown"),
            (&list("{name = 7}"), key, "name is not a string"),
            (
                "[hypervisor.qemu.guest_extension_images]\nname = 'gpu'",
                key,
                "expected a list of tables, found a table",
            ),
        ],
    );
}

#[test]
fn a3_kernel_parameters_keep_their_quoted_blanks() {
    let place = Place::new();
    let key = "hypervisor.qemu.kernel_params";
    let loaded = place.load_with(&format!("{key} = ' a=1  b=\"c d\" '")).unwrap();
    assert_eq!(words(&loaded.configuration.hypervisor.kernel_params), ["a=1", "b=\"c d\""]);
    refused(&place, &[(&format!("{key} = 'a=\"b c'"), key, "a double quote without its other")]);
}

#[test]
fn a3_a_kernel_reads_all_of_its_command_line() {
    let place = Place::new();
    let key = "hypervisor.qemu.kernel_params";
    place.load_with(&format!("{key} = 'a={}'", "b".repeat(1000))).unwrap();
    let long = format!("{key} = 'a={}'", "b".repeat(1900));
    refused(&place, &[(&long, key, "and the kernel reads 2047: shorten kernel_params")]);
    // Whatever else is wrong.
    for (other, name) in [
        ("block_device_driver", "'ide'"),
        ("machine_type", "'virt'"),
        ("initrd", "'/no'"),
        ("cpu_features", "'+'"),
    ] {
        let found = problems(place.load_with(&format!("{long}\nhypervisor.qemu.{other} = {name}")));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().any(|one| one.concerns(key)), "{found:?}");
    }
}

#[test]
fn e3_what_containers_do_not_get_yet_is_said() {
    let place = Place::new();
    for key in ["block_device_driver = 'nvdimm'", "enable_iothreads = true"] {
        let loaded = place.load_with(&format!("hypervisor.qemu.{key}")).unwrap();
        assert!(loaded.warnings[0].to_string().contains("devices of virtio-blk"), "{:?}", loaded.warnings);
    }
    let loaded =
        place.load_with("hypervisor.qemu = {queue_size = 256, num_queues = 2, memory_slots = 3}").unwrap();
    assert_eq!(loaded.warnings, []);
    let store = "[hypervisor.qemu]\nenable_vhost_user_store = true\nvhost_user_store_path = '/usr'";
    let loaded = place.load_with(store).unwrap();
    assert!(loaded.warnings[0].concerns("hypervisor.qemu.enable_vhost_user_store"));
}

#[test]
fn a17_an_image_is_read_as_one_of_both_keys_says() {
    let place = Place::new();
    let image = "hypervisor.qemu.initrd = ''\nhypervisor.qemu.image = '@DIR@/image'\n";
    let with = |text: &str| place.load_with(&format!("{image}{text}"));
    for (text, expected) in [
        ("", ImageDriver::Nvdimm),
        ("hypervisor.qemu.disable_image_nvdimm = true", ImageDriver::VirtioBlk),
        ("hypervisor.qemu.vm_rootfs_driver = 'virtio-blk-pci'", ImageDriver::VirtioBlk),
        ("hypervisor.qemu.vm_rootfs_driver = 'virtio-pmem'", ImageDriver::VirtioPmem),
    ] {
        let boot = with(text).unwrap().configuration.hypervisor.boot;
        assert!(matches!(boot, Boot::Image { driver, .. } if driver == expected), "{text}: {boot:?}");
    }
    for (text, what) in [
        ("vm_rootfs_driver = 'virtio-blk-ccw'", "is for s390x"),
        ("vm_rootfs_driver = 'floppy'", "is unknown"),
        ("vm_rootfs_driver = 'nvdimm'\nhypervisor.qemu.disable_image_nvdimm = true", "rules that out"),
    ] {
        let found = problems(with(&format!("hypervisor.qemu.{text}")));
        assert!(found[0].concerns("hypervisor.qemu.vm_rootfs_driver"), "{found:?}");
        assert!(found[0].what.contains(what), "{found:?}");
    }
}

#[test]
fn a23_a_store_of_devices_is_a_directory_where_it_is_used() {
    let place = Place::new();
    let key = "hypervisor.qemu.vhost_user_store_path";
    let text = "hypervisor.qemu = {enable_vhost_user_store = true, vhost_user_store_path = '/no'}";
    refused(&place, &[(text, key, "/no: no such file or directory")]);
    let store = |text| place.load_with(text).unwrap().configuration.hypervisor.vhost_user_store;
    assert_eq!(store("hypervisor.qemu.vhost_user_store_path = '/no'"), None);
    let text = "[hypervisor.qemu]\nenable_vhost_user_store = true\nvhost_user_store_path = '/usr'\n\
                vhost_user_reconnect_timeout_sec = 5";
    let reconnect = std::num::NonZeroU32::new(5);
    assert_eq!(store(text), Some(VhostUserStore { path: "/usr".into(), reconnect }));
}

#[test]
fn a8_options_of_the_board_that_other_keys_decide_are_refused() {
    let place = Place::new();
    let key = "hypervisor.qemu.machine_accelerators";
    for option in ["accel=kvm", "smp.cpus=9", "nosmm,firmware=bios.bin"] {
        refused(
            &place,
            &[(&format!("{key} = '{option}'"), key, "is not for this list: other keys decide that")],
        );
    }
    let text = "hypervisor.qemu.enable_annotations = ['machine_accelerators']";
    let pod = [("io.katacontainers.config.hypervisor.machine_accelerators", "accel=kvm")];
    assert_eq!(problems(place.load_for(text, &pod)).len(), 1);
}

#[test]
fn a15_a17_a30_the_board_has_room_for_what_the_keys_ask_together() {
    let place = Place::new();
    let images = |count: usize| {
        let list: Vec<_> =
            (0..count).map(|one| format!("{{name = 'i{one}', path = '@DIR@/image'}}")).collect();
        list.join(", ")
    };
    let with = |ports: u32, count: usize| {
        let images = images(count);
        format!(
            "hypervisor.qemu = {{default_bridges = 5, pcie_root_port = {ports}, guest_extension_images = [{images}]}}"
        )
    };
    place.load_with(&with(16, 0)).unwrap();
    place.load_with(&with(0, 16)).unwrap();
    place.load_with(&with(16, 5)).unwrap();
    let what = "are 27, and the board has room for 26";
    refused(&place, &[(&with(16, 6), "hypervisor.qemu.pcie_root_port", what)]);
    let what = "17 images are more than the 16 there can be";
    refused(&place, &[(&with(0, 17), "hypervisor.qemu.guest_extension_images", what)]);
    let text = "hypervisor.qemu.enable_annotations = ['pcie_root_port']";
    let pod = [("io.katacontainers.config.hypervisor.pcie_root_port", "17")];
    assert!(problems(place.load_for(text, &pod))[0].what.contains("more than the 16"));
}

#[test]
fn e3_what_means_nothing_where_it_is_is_said() {
    let place = Place::new();
    for text in [
        "guest_memory_dump_paging = true",
        "snp_id_block = 'AAAA'",
        "snp_id_auth = 'AAAA'",
        "vm_rootfs_driver = 'virtio-blk'",
        "rootfs_type = 'xfs'",
        "virtio_fs_cache_size = 1",
    ] {
        let loaded = place.load_with(&format!("hypervisor.qemu.{text}")).unwrap();
        let key = format!("hypervisor.qemu.{}", text.split(' ').next().unwrap());
        assert!(loaded.warnings.len() == 1 && loaded.warnings[0].concerns(&key), "{:?}", loaded.warnings);
    }
    let dump = "hypervisor.qemu.guest_memory_dump_path";
    refused(&place, &[(&format!("{dump} = '@DIR@/image'"), dump, "is not a directory")]);
}

#[test]
fn e3_keys_that_change_nothing_on_this_machine_are_named() {
    let mut place = Place::new();
    place.file("nodes/node0/cpulist", "");
    place.host.protection = amd(true);
    let later = "memory_slots = 3, memory_offset = 1024, enable_virtio_mem = true, default_maxmemory = 4096, \
                 default_maxvcpus = 4";
    let ports = "default_bridges = 2, pcie_root_port = 1, pcie_switch_port = 2";
    let protected = "confidential_guest = true, firmware = '@DIR@/image'";
    for (machine, keys) in [
        ("machine_type = 'microvm'", format!("{later}, {ports}")),
        (protected, later.to_owned()),
        ("enable_numa = true", "default_maxvcpus = 4".to_owned()),
        ("", "vhost_user_reconnect_timeout_sec = 5, snp_guest_policy = 7".to_owned()),
        (protected, "snp_guest_policy = 7".to_owned()),
        ("", "disable_image_nvdimm = true, vhost_user_store_path = '/usr'".to_owned()),
        ("", "tdx_quote_generation_service_socket_port = 5".to_owned()),
        ("shared_fs = 'virtio-9p'", "virtio_fs_cache = 'never', virtio_fs_queue_size = 512".to_owned()),
        ("shared_fs = 'virtio-fs', virtio_fs_daemon = '@DIR@/virtiofsd'", "msize_9p = 65536".to_owned()),
        (
            "shared_fs = 'none', disable_block_device_use = false",
            "virtio_fs_cache = 'never', msize_9p = 65536".to_owned(),
        ),
        ("machine_type = 'microvm'", "indep_iothreads = 1, num_queues = 2, queue_size = 64".to_owned()),
    ] {
        let text = format!("hypervisor.qemu = {{{}}}", [machine, &keys].join(",").trim_start_matches(','));
        let warnings = place.load_with(&text).unwrap().warnings;
        let names: Vec<_> = keys.split(", ").map(|key| key.split(' ').next().unwrap()).collect();
        assert_eq!(warnings.len(), names.len(), "{warnings:?}");
        for name in names {
            let key = format!("hypervisor.qemu.{name}");
            assert!(warnings.iter().any(|warning| warning.concerns(&key)), "{key}: {warnings:?}");
        }
    }
    for quiet in [
        "machine_type = 'microvm', default_bridges = 0, memory_slots = 10, default_maxvcpus = 0",
        "confidential_guest = true, sev_snp_guest = true, firmware = '@DIR@/image', snp_guest_policy = 7",
        "default_maxvcpus = 4, memory_slots = 3, pcie_root_port = 1",
    ] {
        let loaded = place.load_with(&format!("hypervisor.qemu = {{{quiet}}}")).unwrap();
        assert_eq!(loaded.warnings, [], "{quiet}");
    }
}

#[test]
fn a31_a_filter_of_system_calls_is_what_qemu_knows() {
    let place = Place::new();
    let key = "hypervisor.qemu.seccompsandbox";
    for wrong in ["on,on", "on,spawn=perhaps", "on,", "on,all=deny", "on,spawn=deny,enable=off"] {
        refused(&place, &[(&format!("{key} = '{wrong}'"), key, "nothing QEMU's filter knows; write on,")]);
    }
    for none in
        ["obsolete=deny,spawn=deny", "off,spawn=deny", "enable=off,spawn=deny", "spawn=deny,on", "maybe"]
    {
        refused(&place, &[(&format!("{key} = '{none}'"), key, "there would be no filter; write on,")]);
    }
    for right in ["", "on", "off", "enable=off", "enable=on,elevateprivileges=children,obsolete=allow"] {
        place.load_with(&format!("{key} = '{right}'")).unwrap();
    }
}

#[test]
fn a33_rootless_and_a_share_that_qemu_serves_exclude_each_other() {
    let place = Place::new();
    let (key, wrong) =
        ("hypervisor.qemu.rootless", "hypervisor.qemu = {rootless = true, shared_fs = 'virtio-9p'}");
    refused(&place, &[(wrong, key, "hypervisor.qemu.shared_fs"), (wrong, key, "use virtio-fs")]);
    assert!(place.load_with("hypervisor.qemu.rootless = true").unwrap().configuration.hypervisor.rootless);
    let under_tcg = "cannot be had with virtio-9p, which hypervisor.qemu.shared_fs = auto means under TCG";
    refused(&Place::bare(), &[("hypervisor.qemu.rootless = true", key, under_tcg)]);
    refused(&place, &[("hypervisor.qemu = {rootless = true, accelerator = 'tcg'}", key, under_tcg)]);
}

#[test]
fn what_the_host_has_not_is_refused_where_it_is_asked_for_by_name() {
    let place = Place::bare();
    let (accelerator, vsock) = ("hypervisor.qemu.accelerator", "hypervisor.qemu.vsock");
    refused(
        &place,
        &[
            ("hypervisor.qemu.accelerator = 'kvm'", accelerator, "cannot be used: no /dev/kvm; auto or tcg"),
            (
                "hypervisor.qemu.vsock = 'vhost'",
                vsock,
                "/dev/vhost-vsock is not there: load the vhost_vsock module",
            ),
        ],
    );
    for text in ["", "hypervisor.qemu = {accelerator = 'tcg', vsock = 'vhost-user'}"] {
        place.load_with(text).unwrap();
    }
    Place::new().load_with("hypervisor.qemu = {accelerator = 'kvm', vsock = 'vhost'}").unwrap();
}

#[test]
fn d23_a_directory_of_hooks_is_the_guests_and_absolute() {
    let place = Place::new();
    let key = "hypervisor.qemu.guest_hook_path";
    let loaded = place.load_with(&format!("{key} = '/no/such/hooks'")).unwrap();
    assert_eq!(loaded.configuration.hypervisor.guest_hook_path, "/no/such/hooks");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    refused(&place, &[(&format!("{key} = 'hooks'"), key, "not an absolute path in the guest")]);
}

#[test]
fn d11_a_guest_without_a_share_has_its_root_file_systems_on_disks() {
    let place = Place::new();
    let with = |keys: &str| format!("hypervisor.qemu = {{shared_fs = 'none'{keys}}}");
    let disks = ", disable_block_device_use = false";
    let loaded = place.load_with(&with(disks)).unwrap();
    assert_eq!(loaded.configuration.hypervisor.shared_fs, SharedFs::None);
    let rootless = place.load_with(&with(&format!("{disks}, rootless = true"))).unwrap();
    assert!(rootless.configuration.hypervisor.rootless, "nothing of the host is served as root");
    let shown = format!("{}\nruntime.sandbox_bind_mounts = ['/usr']", with(disks));
    let microvm = with(&format!("{disks}, machine_type = 'microvm'"));
    let why = "with hypervisor.qemu.shared_fs = \"none\"";
    refused(
        &place,
        &[
            (&with(""), "hypervisor.qemu.disable_block_device_use", why),
            (&microvm, "hypervisor.qemu.machine_type", why),
            (&shown, "runtime.sandbox_bind_mounts", why),
        ],
    );
}

#[test]
fn a8_what_a_board_has_no_place_for_is_refused_by_its_key() {
    let place = Place::new();
    place.file("nodes/node0/cpulist", "");
    for key in [
        "enable_iommu = true",
        "enable_iommu_platform = true",
        "enable_numa = true",
        "pflashes = ['@DIR@/image']",
        "hot_plug_vfio = 'root-port'",
        "cold_plug_vfio = 'bridge-port'",
        "hotplug_vfio_on_root_bus = true",
        "guest_memory_dump_path = '/var/crash'",
        "block_device_driver = 'nvdimm'",
    ] {
        let name = format!("hypervisor.qemu.{}", key.split(' ').next().unwrap());
        let text = format!("hypervisor.qemu = {{machine_type = 'microvm', {key}}}");
        refused(&place, &[(&text, &name, "the board microvm has no ")]);
        place.load_with(&format!("hypervisor.qemu.{key}")).unwrap();
    }
    if !cfg!(target_arch = "aarch64") {
        let (key, virt) = ("hypervisor.qemu.machine_type", "hypervisor.qemu.machine_type = 'virt'");
        refused(&place, &[(virt, key, "virt is a board of ARM")]);
    }
}

#[test]
fn a40_a_label_for_the_guest_has_the_parts_of_one() {
    let place = Place::new();
    let key = "runtime.guest_selinux_label";
    refused(&place, &[("runtime.guest_selinux_label = 'container_t'", key, "no label of SELinux")]);
    let loaded = place
        .load_with("runtime.guest_selinux_label = 'u:r:t'\nhypervisor.qemu.disable_guest_selinux = false");
    let configuration = loaded.unwrap().configuration;
    assert_eq!(configuration.runtime.guest_selinux_label, "u:r:t");
    assert!(!configuration.hypervisor.disable_guest_selinux && !configuration.hypervisor.disable_selinux);
}

#[test]
fn d21_rates_are_kept_where_they_can_be() {
    let place = Place::new();
    let key = "hypervisor.qemu.rx_rate_limiter_max_rate";
    let loaded = place.load_with(&format!("{key} = 8000")).unwrap();
    assert_eq!(loaded.configuration.hypervisor.rates, Rates { rx: 8000, tx: 0 });
    refused(&place, &[(&format!("{key} = 10"), key, "10 bits per second are no network")]);
    let none = format!("{key} = 1\nruntime.internetworking_model = 'none'");
    assert!(place.load_with(&none).unwrap().warnings[0].to_string().contains("has no effect"));
}

#[test]
fn a12_processors_are_of_a_size_that_qemu_makes() {
    let place = Place::new();
    let key = "hypervisor.qemu.cpu_features";
    let with = |accelerator, bits| {
        format!("hypervisor.qemu = {{accelerator = '{accelerator}', cpu_features = 'phys-bits={bits}'}}")
    };
    refused(&place, &[(&with("tcg", 36), key, "is not within 40 and 40")]);
    refused(&place, &[(&with("kvm", 53), key, "is not within 32 and 52")]);
    let loaded = place.load_with(&with("kvm", 36)).unwrap();
    // 64 GiB, less what is not memory and what aligns ten slots; the host's is less.
    assert_eq!(loaded.configuration.hypervisor.default_maxmemory_mib, 16 << 10);
    let offset = with("kvm", 36).replace('{', "{memory_offset = 1048576, ");
    refused(&place, &[(&offset, "hypervisor.qemu.memory_offset", "more than the 22528 that")]);
    for feature in ["+pmu=off", "help", "?"] {
        refused(&place, &[(&format!("{key} = '{feature}'"), key, "is not of the form")]);
    }
}

#[test]
fn a18_an_iommu_has_a_split_interrupt_controller() {
    let place = Place::new();
    let key = "hypervisor.qemu.machine_accelerators";
    let with = |accelerator, told| {
        format!(
            "hypervisor.qemu = {{accelerator = '{accelerator}', enable_iommu = true, \
             machine_accelerators = 'kernel_irqchip={told}'}}"
        )
    };
    refused(&place, &[(&with("kvm", "on"), key, "goes without enable_iommu")]);
    place.load_with(&with("kvm", "split")).unwrap();
    place.load_with(&with("tcg", "on")).unwrap();
}

#[test]
fn a8_a_board_without_pci_has_places_for_so_many_devices() {
    let place = Place::new();
    let images = |count| {
        let names = (0..count).map(|number| format!("{{name = 'i{number}', path = '@DIR@/image'}}"));
        format!("guest_extension_images = [{}]", names.collect::<Vec<_>>().join(", "))
    };
    let with = |count, options| {
        let images = images(count);
        format!(
            "hypervisor.qemu = {{machine_type = 'microvm', machine_accelerators = '{options}', {images}}}"
        )
    };
    let key = "hypervisor.qemu.guest_extension_images";
    place.load_with(&with(16, "")).unwrap();
    place.load_with(&with(4, "ioapic2=off")).unwrap();
    refused(&place, &[(&with(5, "ioapic2=off"), key, "the board has room for 4: take some away")]);
}
