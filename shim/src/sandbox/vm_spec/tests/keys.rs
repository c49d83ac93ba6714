//! Keys that have no other effect than on the machine, each of which is to have that.

use std::ffi::OsStr;

use vmm::spec::Protection;

use super::*;

#[test]
fn e3_a6_a26_the_files_of_the_configuration_are_those_of_the_machine() {
    let (dir, configuration) = configuration("path = '/bin/false'");
    let spec = planned(&configuration, &Spec::default()).unwrap().spec;
    assert_eq!(spec.qemu, Path::new("/bin/false"));
    assert_eq!(spec.kernel, dir.path().join("kernel"));
    assert_eq!(spec.boot, Boot::Initrd(dir.path().join("initrd")));
    assert_eq!(spec.firmware, vmm::spec::Firmware::BuiltIn);
    let bios = of_keys("firmware = '@DIR@/firmware'").firmware;
    assert!(
        matches!(&bios, vmm::spec::Firmware::Bios(path) if path.file_name() == Some(OsStr::new("firmware")))
    );
    let flash = of_keys("pflashes = ['@DIR@/firmware', '@DIR@/image']").firmware;
    assert!(matches!(flash, vmm::spec::Firmware::Flash { variables: Some(_), .. }), "{flash:?}");
    for (word, wanted) in [("ext4", ImageFs::Ext4), ("xfs", ImageFs::Xfs), ("erofs", ImageFs::Erofs)] {
        let boot = of_keys(&format!("image = '@DIR@/image'\nrootfs_type = '{word}'")).boot;
        assert!(matches!(&boot, Boot::Image { fs, .. } if *fs == wanted), "{boot:?}");
    }
}

#[test]
fn e3_a3_a8_a12_what_the_operator_adds_to_board_processor_and_kernel_is_added() {
    let spec = of_keys(
        "machine_accelerators = 'nosmm,vmport=off'\ncpu_features = 'avx2=off'\nkernel_params = 'a=1 b'",
    );
    let Machine::Q35(options) = &spec.machine else { panic!("{:?}", spec.machine) };
    assert_eq!(options.iter().collect::<Vec<_>>(), ["smm=off", "vmport=off"]);
    assert_eq!(spec.cpu_features.iter().collect::<Vec<_>>(), ["avx2=off"]);
    assert_eq!(spec.kernel_params.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a=1", "b"]);
    let usual = of_keys("");
    assert_eq!(usual.cpu_features.iter().collect::<Vec<_>>(), ["pmu=off"]);
    assert_eq!((usual.machine.options().iter().count(), usual.kernel_params.len()), (0, 0));
}

#[test]
fn e3_a9_processors_are_as_many_as_asked_for_and_as_the_host_has() {
    let all = of_keys("default_vcpus = -1\ndefault_maxvcpus = 0").vcpus;
    assert_eq!(all.boot(), all.max());
    let one = of_keys("default_vcpus = 1\ndefault_maxvcpus = 0").vcpus;
    assert_eq!((one.boot(), one.max()), (1, all.max()));
    let few = of_keys("default_vcpus = 1\ndefault_maxvcpus = 1").vcpus;
    assert_eq!((few.boot(), few.max()), (1, 1));
}

#[test]
fn e3_a10_a11_a22_memory_is_as_much_as_asked_for_and_where_it_is_to_be() {
    let spec = of_keys(
        "default_memory = 300\nmemory_slots = 3\ndefault_maxmemory = 512\nenable_mem_prealloc = true",
    );
    assert_eq!((spec.memory.mib(), spec.memory.growth()), (300, Some((3, 512))));
    assert!(spec.prealloc && !spec.virtio_mem);
    assert_eq!(spec.backing, Backing::Anonymous);
    let spec = of_keys("enable_hugepages = true\nenable_virtio_mem = true");
    assert_eq!((spec.backing, spec.virtio_mem, spec.prealloc), (Backing::HugePages, true, false));
    let spec = of_keys("file_mem_backend = '/dev'");
    assert_eq!(spec.backing, Backing::Directory("/dev".into()));
}

#[test]
fn e3_a7_a_host_that_is_a_virtual_machine_gets_the_old_interface_unless_it_is_not_to() {
    use vmm::spec::VirtioPci::{Legacy, Usual};
    let of = |keys: &str, accelerator, nested: bool| {
        let (_dir, configuration) = configuration(keys);
        let board = configuration.hypervisor.machine.capabilities();
        virtio::where_nested(&configuration.hypervisor, accelerator, board, || nested)
    };
    let (kvm, tcg) = (Accelerator::Kvm, Accelerator::Tcg);
    assert_eq!(of("", kvm, true), Legacy);
    for (keys, accelerator, nested) in [
        ("", kvm, false),
        ("", tcg, true),
        ("disable_nesting_checks = true", kvm, true),
        ("machine_type = 'microvm'", kvm, true),
    ] {
        assert_eq!(of(keys, accelerator, nested), Usual, "{keys}");
    }
    let (_dir, mut configuration) = configuration("");
    configuration.hypervisor.protection = Some(Protection::Tdx { quotes: None });
    let board = configuration.hypervisor.machine.capabilities();
    assert_eq!(virtio::where_nested(&configuration.hypervisor, kvm, board, || true), Usual);
}

#[test]
fn e3_a15_a18_bridges_and_an_iommu_are_the_machines() {
    let spec = of_keys("default_bridges = 3\nenable_iommu = true");
    assert_eq!((spec.pci.bridges(), spec.iommu), (3, true));
    let usual = of_keys("");
    assert_eq!((usual.pci.bridges(), usual.pci.root_ports(), usual.iommu), (1, 0, false));
}

#[test]
fn e3_a13_a16_a29_a31_console_monitor_random_numbers_and_filter_are_the_machines() {
    let usual = of_keys("");
    assert_eq!((usual.console, usual.extra_monitor, usual.seccomp), (Console::Virtio, None, None));
    assert_eq!((usual.entropy.as_path(), usual.debug), (Path::new("/dev/urandom"), false));
    let spec = of_keys(
        "use_legacy_serial = true\nentropy_source = '/dev/random'\nseccompsandbox = 'on,spawn=deny'\nenable_debug = true",
    );
    assert_eq!((spec.console, spec.seccomp.as_deref()), (Console::Serial, Some("on,spawn=deny")));
    assert_eq!((spec.entropy.as_path(), spec.debug), (Path::new("/dev/random"), true));
    for (word, wanted) in
        [("hmp", ExtraMonitor::Hmp), ("qmp", ExtraMonitor::Qmp), ("qmp-pretty", ExtraMonitor::QmpPretty)]
    {
        assert_eq!(of_keys(&format!("extra_monitor_socket = '{word}'")).extra_monitor, Some(wanted));
    }
}

#[test]
fn a31_a_switch_of_the_kernels_is_read_with_the_end_of_its_line() {
    assert!(is_off("0\n") && is_off("0"));
    assert!(!is_off("1\n") && !is_off("2\n") && !is_off(""));
}

#[test]
fn e3_a19_b6_memory_of_a_guest_that_panicked_is_kept_under_the_sandboxs_name() {
    assert_eq!(of_keys("").panic_dump, None);
    let dump = of_keys("guest_memory_dump_path = '/var/crash'\nguest_memory_dump_paging = true").panic_dump;
    assert_eq!(dump, Some(PanicDump { directory: "/var/crash/pod".into(), paging: true }));
    let dump = of_keys("guest_memory_dump_path = '/var/crash'").panic_dump;
    assert!(!dump.unwrap().paging);
}

/// Under KVM, which is what the keys are for.
fn virtio_fs(keys: &str) -> VirtioFs {
    let (_dir, configuration) = configuration(&format!("virtio_fs_daemon = '/bin/true'\n{keys}"));
    let share = share_of(&configuration.hypervisor, Accelerator::Kvm, Path::new("/shared"), &log());
    match share.unwrap().unwrap().kind {
        ShareKind::VirtioFs(fs) => fs,
        ShareKind::Virtio9p => panic!("virtio-9p by {keys}"),
    }
}

#[test]
fn e3_a36_b18_keys_of_virtio_fs_reach_the_share() {
    let usual = virtio_fs("");
    assert_eq!(
        (usual.server, usual.queue_size, usual.dax_mib),
        (FsServer::Virtiofsd(FsCache::Auto), 1024, 0)
    );
    assert_eq!(usual.extra_args.iter().collect::<Vec<_>>(), ["--thread-pool-size=1", "--announce-submounts"]);
    let fs = virtio_fs(
        "shared_fs = 'virtio-fs'\nvirtio_fs_queue_size = 64\nvirtio_fs_cache_size = 128\n\
         virtio_fs_extra_args = ['--log-level=debug']",
    );
    assert_eq!((fs.daemon.as_path(), fs.queue_size, fs.dax_mib), (Path::new("/bin/true"), 64, 128));
    assert_eq!(fs.extra_args.iter().collect::<Vec<_>>(), ["--log-level=debug"]);
    for (word, wanted) in [
        ("never", FsCache::Never),
        ("metadata", FsCache::Metadata),
        ("auto", FsCache::Auto),
        ("always", FsCache::Always),
    ] {
        assert_eq!(virtio_fs(&format!("virtio_fs_cache = '{word}'")).server, FsServer::Virtiofsd(wanted));
    }
}

#[test]
fn e3_b18_the_guest_mounts_what_is_shared_as_it_is_shared() {
    let storage = |keys: &str| {
        let plan = planned(&configuration(keys).1, &Spec::default()).unwrap();
        let [storage] = <[Storage; 1]>::try_from(plan.storages).unwrap();
        (plan.spec.share.unwrap(), storage)
    };
    let (share, mounted) = storage("shared_fs = 'virtio-9p'\nmsize_9p = 65536");
    assert_eq!(
        (share.kind, share.source.as_path()),
        (ShareKind::Virtio9p, Path::new("/run/pod/share/shared"))
    );
    assert_eq!((mounted.driver.as_str(), mounted.source.as_str()), ("9p", share.tag.as_str()));
    assert!(mounted.options.iter().any(|option| option == "msize=65536"), "{:?}", mounted.options);
    let with_virtio_fs = "shared_fs = 'virtio-fs'\nvirtio_fs_daemon = '/bin/true'";
    let (share, mounted) = storage(with_virtio_fs);
    // Under TCG anything else would crash programs.
    assert!(
        matches!(&share.kind, ShareKind::VirtioFs(fs) if fs.server == FsServer::Virtiofsd(FsCache::Always)),
        "{share:?}"
    );
    assert_eq!((mounted.driver.as_str(), mounted.options.len()), ("virtio-fs", 0));
    let (_, mounted) = storage(&format!("{with_virtio_fs}\nvirtio_fs_cache_size = 64"));
    assert_eq!(mounted.options, ["dax"]);
}

#[test]
fn e3_b22_the_vsock_is_the_kernels_where_it_is_there_and_not_ruled_out() {
    assert_eq!(of_keys("vsock = 'vhost-user'").vsock, VsockSpec::VhostUser);
    let has_vhost = Path::new(VHOST_VSOCK).exists();
    let auto = of_keys("vsock = 'auto'").vsock;
    assert_eq!(auto, if has_vhost { VsockSpec::Vhost } else { VsockSpec::VhostUser });
    if has_vhost {
        assert_eq!(of_keys("vsock = 'vhost'").vsock, VsockSpec::Vhost);
    }
}

#[test]
fn e3_a20_each_driver_of_disks_is_what_the_machine_is_made_for() {
    for (word, wanted) in [
        // No disk comes to a pod yet, so that there is no controller for any.
        ("virtio-scsi", BlockDriver::VirtioBlk),
        ("virtio-blk", BlockDriver::VirtioBlk),
        ("nvdimm", BlockDriver::Nvdimm),
    ] {
        assert_eq!(of_keys(&format!("block_device_driver = '{word}'")).block.driver, wanted);
    }
    let cached = "block_device_aio = 'threads'\nblock_device_cache_set = true\nblock_device_cache_noflush = true\n\
                  block_device_physical_sector_size = 4096";
    let options = of_keys(cached).block.options;
    assert_eq!(options.access().aio(), "threads");
    assert_eq!(options.access().cache(), Some(Cache { direct: false, no_flush: true }));
    assert_eq!((options.sectors().logical(), options.sectors().physical()), (None, Some(4096)));
}
