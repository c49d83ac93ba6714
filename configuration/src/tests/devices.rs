//! What keys may say about the machine's devices.

use vmm::protection::{Amd, Available};
use vmm::spec::{
    Access, BlockDriver, Boot, CBit, Firmware, ImageDriver, Numa, Protection, Queues, SnpIdentity,
};

use super::values::refused;
use super::{Place, problems, words};
use crate::VhostUserStore;

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
    for key in
        ["hot_plug_vfio = 'root-port'", "cold_plug_vfio = 'root-port'", "hotplug_vfio_on_root_bus = true"]
    {
        let loaded = place.load_with(&format!("hypervisor.qemu.{key}")).unwrap();
        let name = key.split(' ').next().unwrap();
        let [warning] = &*loaded.warnings else { panic!("{:?}", loaded.warnings) };
        assert!(warning.concerns(&format!("hypervisor.qemu.{name}")), "{warning}");
        assert!(warning.to_string().contains("this version gives containers none"), "{warning}");
    }
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
fn a26_firmware_is_in_read_only_memory_or_in_flash() {
    let place = Place::new();
    let flashes = "hypervisor.qemu.pflashes";
    refused(
        &place,
        &[
            (
                "hypervisor.qemu.firmware_volume = '@DIR@/image'",
                "hypervisor.qemu.firmware_volume",
                "the variables of no firmware",
            ),
            ("hypervisor.qemu.pflashes = ['/no']", flashes, "/no: no such file"),
            (
                "hypervisor.qemu = {pflashes = ['@DIR@/image'], firmware = '@DIR@/image'}",
                flashes,
                "choose one",
            ),
            (
                "hypervisor.qemu.pflashes = ['@DIR@/image', '@DIR@/image', '@DIR@/image']",
                flashes,
                "room for two",
            ),
        ],
    );
    place.file("odd", &"x".repeat(5000));
    place.file("page", &"x".repeat(4096));
    let image = "hypervisor.qemu = {initrd = '', image = '@DIR@/odd'}";
    refused(
        &place,
        &[
            ("hypervisor.qemu.firmware = '@DIR@/page'", "hypervisor.qemu.firmware", "blocks of 65536 bytes"),
            ("hypervisor.qemu.pflashes = ['@DIR@/odd']", flashes, "no whole number of blocks of 4096 bytes"),
            (image, "hypervisor.qemu.image", "blocks of 4096 bytes"),
        ],
    );
    place.load_with(&image.replace('}', ", disable_image_nvdimm = true}")).unwrap();
    place.load_with("hypervisor.qemu.pflashes = ['@DIR@/page']").unwrap();
    let firmware = |text| place.load_with(text).unwrap().configuration.hypervisor.firmware;
    let (code, variables) = (place.path("kernel"), Some(place.path("image")));
    assert_eq!(firmware(""), Firmware::BuiltIn);
    assert_eq!(firmware("hypervisor.qemu.firmware = '@DIR@/kernel'"), Firmware::Bios(code.clone()));
    let flash = Firmware::Flash { code, variables };
    assert_eq!(firmware("hypervisor.qemu.pflashes = ['@DIR@/kernel', '@DIR@/image']"), flash);
    let pair = "hypervisor.qemu = {firmware = '@DIR@/kernel', firmware_volume = '@DIR@/image'}";
    assert_eq!(firmware(pair), flash);
}

#[test]
fn a26_flash_memory_is_no_more_than_the_board_has_room_for() {
    let place = Place::new();
    place.sparse("code", 7 << 20);
    place.sparse("vars", (1 << 20) + 4096);
    let (pair, flashes) = (
        "firmware = '@DIR@/code', firmware_volume = '@DIR@/vars'",
        "pflashes = ['@DIR@/code', '@DIR@/vars']",
    );
    let what = "more than the 8388608 bytes of flash memory";
    for (text, key) in [(pair, "firmware"), (flashes, "pflashes")] {
        let key = format!("hypervisor.qemu.{key}");
        refused(&place, &[(&format!("hypervisor.qemu = {{{text}}}"), &key, what)]);
        let room = "machine_accelerators = 'max_fw_size=16M'";
        place.load_with(&format!("hypervisor.qemu = {{{text}, {room}}}")).unwrap();
    }
    place.sparse("vars", 1 << 20);
    place.load_with(&format!("hypervisor.qemu = {{{pair}}}")).unwrap();
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
fn a27_protected_memory_has_firmware_and_a_whole_identity() {
    let place = Place::new();
    let with = |text: &str| {
        format!("[hypervisor.qemu]\nfirmware = '@DIR@/image'\nconfidential_guest = true\n{text}\n")
    };
    let (block, auth) = ("snp_id_block = 'AAAA'", "snp_id_auth = 'AAAA'");
    let [block, auth, both] = [block, auth, &format!("{block}\n{auth}")].map(with);
    refused(
        &place,
        &[
            (
                "hypervisor.qemu.confidential_guest = true",
                "hypervisor.qemu.confidential_guest",
                "set hypervisor.qemu.firmware",
            ),
            (block.as_str(), "hypervisor.qemu.snp_id_auth", "missing"),
            (auth.as_str(), "hypervisor.qemu.snp_id_block", "missing"),
            (both.as_str(), "hypervisor.qemu.snp_id_block", "is not 96 bytes in base64"),
        ],
    );
    for key in [
        "machine_type = 'microvm'",
        "accelerator = 'tcg'",
        "enable_iommu = true",
        "reclaim_guest_freed_memory = true",
        "block_device_driver = 'nvdimm'",
        "firmware_volume = '@DIR@/image'",
    ] {
        let name = format!("hypervisor.qemu.{}", key.split(' ').next().unwrap());
        refused(&place, &[(&with(key), &name, "unset this, or hypervisor.qemu.confidential_guest")]);
    }
    let flash =
        "hypervisor.qemu = {confidential_guest = true, sev_snp_guest = true, pflashes = ['@DIR@/image']}";
    refused(&place, &[(flash, "hypervisor.qemu.pflashes", "SEV-SNP starts from hypervisor.qemu.firmware")]);
    let loaded = place.load_with("hypervisor.qemu.sev_snp_guest = true").unwrap();
    assert!(loaded.warnings[0].concerns("hypervisor.qemu.sev_snp_guest"));
    assert_eq!(loaded.configuration.hypervisor.protection, None);
}

fn amd(snp: bool) -> Available {
    Available { tdx: false, amd: Some(Amd { encrypted_state: true, snp }) }
}

const TDX: Available = Available { tdx: true, amd: None };

fn protected(more: &str) -> String {
    format!("[hypervisor.qemu]\nfirmware = '@DIR@/image'\nconfidential_guest = true\n{more}\n")
}

#[test]
fn a27_the_host_s_processor_decides_by_what() {
    let c_bit = CBit::new(51).unwrap();
    let identity = ("A".repeat(128), format!("{}==", "B".repeat(5462)));
    let snp = format!(
        "sev_snp_guest = true\nsnp_guest_policy = 1\nsnp_id_block = '{}'\nsnp_id_auth = '{}'",
        identity.0, identity.1
    );
    let identity = SnpIdentity::new(&identity.0, &identity.1).ok();
    assert!(identity.is_some());
    let mut place = Place::new();
    for (text, host, expected) in [
        ("", TDX, Protection::Tdx { quotes: Some(4050) }),
        ("tdx_quote_generation_service_socket_port = 0", TDX, Protection::Tdx { quotes: None }),
        ("", amd(true), Protection::Sev { c_bit, encrypted_state: true }),
        ("sev_snp_guest = true", amd(true), Protection::Snp { c_bit, policy: 196_608, identity: None }),
        (&snp, amd(true), Protection::Snp { c_bit, policy: 1, identity }),
    ] {
        place.host.protection = host;
        let hypervisor = place.load_with(&protected(text)).unwrap().configuration.hypervisor;
        assert_eq!(hypervisor.protection, Some(expected), "{text}");
    }
}

#[test]
fn a27_a_host_without_it_runs_no_guest_unprotected() {
    let mut place = Place::new();
    let (any, snp) = ("hypervisor.qemu.confidential_guest", "hypervisor.qemu.sev_snp_guest");
    for (text, host, key, what) in [
        ("", Available::default(), any, "this host has neither TDX nor SEV; unset it"),
        ("sev_snp_guest = true", TDX, snp, "no SEV-SNP"),
        ("sev_snp_guest = true", amd(false), snp, "no SEV-SNP"),
    ] {
        place.host.protection = host;
        refused(&place, &[(&protected(text), key, what)]);
    }
    (place.host.protection, place.host.c_bit) = (amd(false), None);
    refused(&place, &[(&protected(""), any, "cannot say that memory is encrypted")]);
}

#[test]
fn e3_numa_nodes_are_lists_of_the_host_s() {
    let place = Place::new();
    for list in ["", "a", "1-", "3-2", "128", "0,,1"] {
        let text = format!("hypervisor.qemu = {{enable_numa = true, numa_mapping = ['0', '{list}']}}");
        refused(&place, &[(text.as_str(), "hypervisor.qemu.numa_mapping", "is no list of nodes")]);
    }
    let loaded = place.load_with("hypervisor.qemu.numa_mapping = ['0']").unwrap();
    assert!(loaded.warnings[0].concerns("hypervisor.qemu.numa_mapping"));
}

#[test]
fn e3_a_guest_has_a_node_for_each_of_the_host_s_or_those_it_is_given() {
    let place = Place::new();
    for name in ["node10", "node2", "node0", "power", "nodes"] {
        place.file(&format!("nodes/{name}/cpulist"), "");
    }
    let numa = |mapping: &str| {
        let text = format!("hypervisor.qemu = {{enable_numa = true{mapping}}}");
        place.load_with(&text).unwrap().configuration.hypervisor.numa
    };
    assert_eq!(place.load_with("").unwrap().configuration.hypervisor.numa, None);
    assert_eq!(numa(""), Numa::new(vec![vec![0], vec![2], vec![10]]).ok());
    assert_eq!(numa(", numa_mapping = ['2,0']"), Numa::new(vec![vec![2, 0]]).ok());
    let absent = "hypervisor.qemu = {enable_numa = true, numa_mapping = ['0', '1,4-5']}";
    refused(&place, &[(absent, "hypervisor.qemu.numa_mapping", "the host has no node 1, but [0, 2, 10]")]);
    for (name, table) in [("node0", "10 20 30"), ("node2", "21 10 40\n"), ("node10", "31 41 10")] {
        place.file(&format!("nodes/{name}/distance"), table);
    }
    let two = Numa::new(vec![vec![10], vec![0, 2]]).unwrap();
    let expected = two.with_distances(vec![vec![10, 31], vec![30, 10]]).unwrap();
    assert_eq!(numa(", numa_mapping = ['10', '0,2']"), Some(expected));
    for number in 11..=18 {
        place.file(&format!("nodes/node{number}/cpulist"), "");
    }
    let all = "hypervisor.qemu.enable_numa = true";
    refused(
        &place,
        &[(all, "hypervisor.qemu.numa_mapping", "11 nodes are more than the 8 a guest can have")],
    );
    // A kernel without NUMA has no nodes to divide among.
    let none = "hypervisor.qemu.enable_numa = true";
    refused(&Place::new(), &[(none, "hypervisor.qemu.numa_mapping", "1 to 128 of them")]);
}

#[test]
fn a10_memory_is_no_more_than_processors_can_address() {
    let mut place = Place::new();
    let key = "hypervisor.qemu.memory_offset";
    let tcg = "hypervisor.qemu = {accelerator = 'tcg', memory_offset = 1048576}";
    refused(&place, &[(tcg, key, "1048576 MiB on top of the 16384 of default_maxmemory")]);
    let memory = "hypervisor.qemu = {accelerator = 'tcg', default_memory = 1048576}";
    refused(&place, &[(memory, "hypervisor.qemu.default_memory", "more than the 989184 that the guest's")]);
    place.load_with(&tcg.replace("tcg", "kvm")).unwrap();
    // Too little memory, or more than may come, does not hide it.
    for also in ["default_memory = 255", "default_maxmemory = 1024"] {
        let both = format!("hypervisor.qemu = {{{also}, memory_offset = 4294967295}}");
        let found = problems(place.load_with(&both));
        let name = format!("hypervisor.qemu.{}", also.split(' ').next().unwrap());
        assert!(found.len() == 2 && found[0].concerns(&name) && found[1].concerns(key), "{found:?}");
    }
    // The host may have more than the translator's processors reach.
    place.host.memory_mib = 4 << 20;
    for (accelerator, most) in [("tcg", (1012 - 36 - 10) << 10), ("kvm", 4 << 20)] {
        let loaded = place.load_with(&format!("hypervisor.qemu.accelerator = '{accelerator}'")).unwrap();
        assert_eq!(loaded.configuration.hypervisor.default_maxmemory_mib, most, "{accelerator}");
    }
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
    let shared = "hypervisor.qemu.shared_fs";
    refused(&place, &[("hypervisor.qemu.shared_fs = 'none'", shared, "without root filesystems")]);
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
