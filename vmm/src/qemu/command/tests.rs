//! Whole command lines, and what differs between machines.

mod boards;
pub(super) mod images;
mod protection;
mod templates;
mod vfio;

use super::*;
use crate::spec::*;

pub(super) fn spec() -> VmSpec {
    let (name, uuid) = ("sandbox-pod-1", "01234567-89ab-4def-8123-456789abcdef");
    let plain = VmSpec::plain(
        VmName::new(name).unwrap(),
        VmUuid::new(uuid).unwrap(),
        "/run/kata/k8s.io/pod-1".into(),
        "/usr/bin/qemu-system-x86_64".into(),
        "/guest/vmlinuz".into(),
        Boot::Initrd("/guest/initrd.img".into()),
    );
    VmSpec {
        accelerator: Accelerator::Kvm,
        cpu_features: CpuFeatures::parse("pmu=off").unwrap(),
        vcpus: Vcpus::new(1, 8).unwrap(),
        memory: Memory::new(2048, 10, 8192).unwrap(),
        kernel_params: vec![KernelParam::new("agent.log=info").unwrap()],
        vsock: VsockSpec::Vhost,
        ..plain.unwrap()
    }
}

fn inherited() -> Inherited<'static> {
    Inherited {
        qmp: 5,
        console: 6,
        extra_monitor: None,
        image: None,
        extensions: Vec::new(),
        share: None,
        vsock: Some(VsockEnd::Vhost { fd: 7, cid: 1234 }),
        nics: Vec::new(),
        memory: None,
        ticks_per_ms: None,
    }
}

/// A share by virtio-fs with a window of that size.
pub(super) fn fs(dax_mib: u32) -> VirtioFs {
    VirtioFs {
        daemon: "/guest/virtiofsd".into(),
        server: FsServer::Virtiofsd(FsCache::Auto),
        queue_size: 1024,
        dax_mib,
        extra_args: ExtraArgs::default(),
    }
}

/// The arguments as lines: an option and its value on one.
fn lines(spec: &VmSpec, inherited: &Inherited<'_>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for argument in render(spec, inherited) {
        let argument = argument.into_string().unwrap();
        match lines.last_mut() {
            Some(line) if !argument.starts_with('-') => line.extend([" ", &argument]),
            _ => lines.push(argument),
        }
    }
    lines
}

fn has(lines: &[String], line: &str) -> bool {
    lines.iter().any(|found| found == line)
}

#[test]
fn a14_a35_a_machine_with_kvm_and_an_initrd_is_this_line() {
    let expected = r#"-name sandbox-pod-1
-uuid 01234567-89ab-4def-8123-456789abcdef
-no-user-config
-nodefaults
-no-reboot
-S
-display none
-accel kvm
-machine q35,memory-backend=memory0
-cpu host,pmu=off
-smp 1,cores=1,threads=1,sockets=8,maxcpus=8
-m 2048M,slots=10,maxmem=8192M
-object {"qom-type":"memory-backend-memfd","id":"memory0","size":2147483648,"share":true}
-rtc base=utc,driftfix=slew,clock=host
-global kvm-pit.lost_tick_policy=discard
-chardev socket,id=qmp0,fd=5
-mon chardev=qmp0,mode=control
-chardev socket,id=charconsole0,fd=6
-device {"driver":"virtio-serial-pci","id":"serial0"}
-device {"driver":"virtconsole","id":"console0","chardev":"charconsole0"}
-object {"qom-type":"rng-random","id":"rng0","filename":"/dev/urandom"}
-device {"driver":"virtio-rng-pci","id":"virtio-rng0","rng":"rng0"}
-device {"driver":"virtio-scsi-pci","id":"scsi0","num_queues":1,"virtqueue_size":128}
-device {"driver":"vhost-vsock-pci","id":"vsock0","guest-cid":1234,"vhostfd":"7"}
-kernel /guest/vmlinuz
-initrd /guest/initrd.img
-append tsc=reliable no_timer_check rcupdate.rcu_expedited=1 i8042.direct=1 i8042.dumbkbd=1 i8042.nopnp=1 i8042.noaux=1 noreplace-smp reboot=k cryptomgr.notests net.ifnames=0 pci=lastbus=0 console=hvc0 quiet panic=1 oops=panic nr_cpus=8 scsi_mod.scan=none swiotlb=noforce agent.log=info"#;
    assert_eq!(lines(&spec(), &inherited()).join("\n"), expected);
}

#[test]
fn without_kvm_the_processor_is_the_translators_best() {
    let lines = lines(&VmSpec { accelerator: Accelerator::Tcg, ..spec() }, &inherited());
    assert!(has(&lines, "-accel tcg,thread=single"));
    assert!(has(&lines, "-cpu max,erms=off,fsrm=off,pmu=off"));
    assert!(!lines.iter().any(|line| line.contains("kvm")), "{lines:?}");
}

#[test]
fn a12_without_features_the_processor_has_no_comma_after_it() {
    for list in ["", ",", " , "] {
        let cpu_features = CpuFeatures::parse(list).unwrap();
        assert!(has(&lines(&VmSpec { cpu_features, ..spec() }, &inherited()), "-cpu host"), "{list:?}");
    }
}

#[test]
fn machine_options_are_written_as_new_and_old_releases_take_them() {
    let machine = Machine::Q35(MachineOptions::parse("nosmm, vmport=off,usb").unwrap());
    let lines = lines(&VmSpec { machine, ..spec() }, &inherited());
    assert!(has(&lines, "-machine q35,memory-backend=memory0,smm=off,vmport=off,usb=on"));
}

#[test]
fn memory_that_cannot_grow_has_no_slots() {
    let lines = lines(&VmSpec { memory: Memory::new(512, 0, 512).unwrap(), ..spec() }, &inherited());
    assert!(has(&lines, "-m 512M"));
}

#[test]
fn a_shared_directory_by_9p_may_have_any_name() {
    let tag = Tag::new("kataShared").unwrap();
    let share = Some(ShareEnd::Virtio9p { tag: &tag, source: Path::new("/a,readonly=off,\"b\"=\nc") });
    let lines = lines(&spec(), &Inherited { share, ..inherited() });
    assert!(has(
        &lines,
        "-fsdev local,id=fsdev0,path=/a,,readonly=off,,\"b\"=\nc,security_model=none,multidevs=remap"
    ));
    assert!(has(
        &lines,
        r#"-device {"driver":"virtio-9p-pci","id":"fs0","fsdev":"fsdev0","mount_tag":"kataShared"}"#
    ));
}

#[test]
fn daemons_are_reached_by_inherited_sockets() {
    let tag = Tag::new("kataShared").unwrap();
    let share = Some(ShareEnd::VirtioFs { tag: &tag, fs: &fs(0), fd: 8 });
    let inherited = Inherited { share, vsock: Some(VsockEnd::VhostUser { fd: 9 }), ..inherited() };
    let lines = lines(&spec(), &inherited);
    assert!(has(&lines, "-chardev socket,id=charfs0,fd=8"));
    assert!(has(
        &lines,
        r#"-device {"driver":"vhost-user-fs-pci","id":"fs0","chardev":"charfs0","tag":"kataShared","queue-size":1024}"#
    ));
    assert!(has(&lines, "-chardev socket,id=charvsock0,fd=9"));
    assert!(has(&lines, r#"-device {"driver":"vhost-user-vsock-pci","id":"vsock0","chardev":"charvsock0"}"#));
}

#[test]
fn the_operators_wishes_reach_the_line() {
    let spec = VmSpec {
        console: Console::Serial,
        seccomp: Some("on,spawn=deny".into()),
        firmware: Firmware::Bios("/fw,1".into()),
        entropy: "/dev/a,\"b".into(),
        kernel_params: ["panic=0", "x=\"a b\""].map(|word| KernelParam::new(word).unwrap()).into(),
        debug: true,
        ..spec()
    };
    let lines = lines(&spec, &inherited());
    assert!(has(&lines, "-sandbox on,spawn=deny"));
    assert!(has(&lines, "-bios /fw,1"));
    assert!(has(&lines, r#"-device {"driver":"isa-serial","id":"console0","chardev":"charconsole0"}"#));
    assert!(has(&lines, r#"-object {"qom-type":"rng-random","id":"rng0","filename":"/dev/a,\"b"}"#));
    assert!(lines.last().unwrap().ends_with(
        " console=ttyS0 debug panic=1 oops=panic nr_cpus=8 scsi_mod.scan=none swiotlb=noforce panic=0 x=\"a b\""
    ));
}

#[test]
fn a11_a22_memory_is_where_the_specification_has_it() {
    let backend = |backing, prealloc| {
        let lines = lines(&VmSpec { backing, prealloc, ..spec() }, &inherited());
        lines.into_iter().find(|line| line.contains("memory0\",")).unwrap()
    };
    assert_eq!(
        backend(Backing::HugePages, true),
        r#"-object {"qom-type":"memory-backend-memfd","id":"memory0","size":2147483648,"share":true,"hugetlb":true,"prealloc":true}"#
    );
    assert_eq!(
        backend(Backing::Directory("/mnt/a,b".into()), false),
        r#"-object {"qom-type":"memory-backend-file","id":"memory0","size":2147483648,"mem-path":"/mnt/a,b","share":true}"#
    );
}

#[test]
fn a13_a_second_monitor_listens_beside_the_first() {
    for (kind, mode) in [
        (ExtraMonitor::Hmp, "mode=readline"),
        (ExtraMonitor::Qmp, "mode=control"),
        (ExtraMonitor::QmpPretty, "mode=control,pretty=on"),
    ] {
        let inherited = Inherited { extra_monitor: Some(9), ..inherited() };
        let lines = lines(&VmSpec { extra_monitor: Some(kind), ..spec() }, &inherited);
        assert!(has(&lines, "-chardev socket,id=monitor1,fd=9,server=on,wait=off"));
        assert!(has(&lines, &format!("-mon chardev=monitor1,{mode}")));
    }
}

#[test]
fn a15_a30_places_for_later_devices_come_before_other_devices() {
    let pci = PciPlaces::new(2, 1, Window { mem: 4 << 20, pref64: 64 << 30 }).unwrap();
    let lines = lines(&VmSpec { pci, ..spec() }, &inherited());
    let devices: Vec<&String> = lines.iter().filter(|line| line.starts_with("-device")).take(3).collect();
    let bridge = |number: u32| {
        format!(
            r#"-device {{"driver":"pci-bridge","id":"pci-bridge-{number}","bus":"pcie.0","addr":"{}","chassis_nr":{},"shpc":false,"io-reserve":4096,"mem-reserve":1048576,"pref64-reserve":1048576}}"#,
            number + 2,
            number + 1
        )
    };
    let port = r#"-device {"driver":"pcie-root-port","id":"rp0","bus":"pcie.0","addr":"7","chassis":0,"slot":0,"mem-reserve":4194304,"pref64-reserve":68719476736}"#;
    assert_eq!(devices, [&bridge(0), &bridge(1), port]);
}

#[test]
fn a18_an_iommu_comes_first_and_the_guest_is_told_to_use_it() {
    let lines = lines(&VmSpec { iommu: true, ..spec() }, &inherited());
    let first = lines.iter().find(|line| line.starts_with("-device")).unwrap();
    let iommu =
        r#"{"driver":"intel-iommu","id":"iommu0","intremap":"on","device-iotlb":true,"caching-mode":true}"#;
    assert_eq!(*first, format!("-device {iommu}"));
    assert!(has(&lines, "-machine q35,memory-backend=memory0,kernel_irqchip=split"));
    let append = lines.iter().find(|line| line.starts_with("-append")).unwrap();
    assert!(append.contains(" intel_iommu=on iommu=pt "), "{append}");
}

#[test]
fn a20_the_scsi_controller_has_the_threads_and_queues_asked_for_and_the_guest_waits_to_be_told_of_disks() {
    let queues = Queues::new(4, 256).unwrap();
    let block = Block {
        options: BlockOptions::new(Access::IoUring, Sectors::default(), queues),
        threads: IoThreads::new(true, 2).unwrap(),
        ..Block::default()
    };
    let all = lines(&VmSpec { block: block.clone(), ..spec() }, &inherited());
    for id in ["iothread0", "indep-iothread0", "indep-iothread1"] {
        assert!(has(&all, &format!(r#"-object {{"qom-type":"iothread","id":"{id}"}}"#)), "{id}");
    }
    assert!(has(
        &all,
        r#"-device {"driver":"virtio-scsi-pci","id":"scsi0","num_queues":4,"virtqueue_size":256,"iothread":"iothread0"}"#
    ));
    assert!(all.last().unwrap().contains(" scsi_mod.scan=none "));
    let block = Block { driver: BlockDriver::VirtioBlk, ..block };
    let without = lines(&VmSpec { block, ..spec() }, &inherited());
    assert!(!without.iter().any(|line| line.contains("scsi")), "{without:?}");
    assert!(has(&without, r#"-object {"qom-type":"iothread","id":"iothread0"}"#));
}

#[test]
fn a3_memory_for_devices_that_reach_not_all_of_it_is_set_aside_where_there_may_be_some() {
    let says = |spec: &VmSpec| lines(spec, &inherited()).pop().unwrap().contains(" swiotlb=noforce");
    assert!(says(&spec()));
    for spec in [
        VmSpec { iommu: true, ..spec() },
        VmSpec { virtio: VirtioPci::BehindIommu, ..spec() },
        VmSpec { pass_through: PassThrough::Hot(VfioPort::Bridge), ..spec() },
    ] {
        assert!(!says(&spec));
    }
}

#[test]
fn a3_a_command_line_that_the_guests_kernel_would_not_read_whole_is_refused() {
    let with = |bytes: usize| {
        let word = KernelParam::new(format!("a={}", "x".repeat(bytes))).unwrap();
        VmSpec { kernel_params: vec![word], ..spec() }
    };
    assert_eq!(with(1500).check(), Ok(()));
    let error = with(2000).check().unwrap_err().to_string();
    assert!(error.contains("the kernel reads 2047: shorten kernel_params"), "{error}");
}

#[test]
fn a39_virtio_mem_has_whole_huge_pages_of_host_and_guest() {
    let memory = Memory::new(256, 10, 4097).unwrap();
    let spec = VmSpec { memory, virtio_mem: true, ..spec() };
    assert_eq!(spec.virtio_mem().map(|device| device.mib), Some(4096 - 256));
}

#[test]
fn a10_address_space_for_later_nvdimms_is_on_top_of_memory() {
    let memory = Memory::new(2048, 10, 8192).unwrap().with_room(1024).unwrap();
    let block = Block { driver: BlockDriver::Nvdimm, ..Block::default() };
    let lines = lines(&VmSpec { memory, block, ..spec() }, &inherited());
    assert!(has(&lines, "-m 2048M,slots=10,maxmem=9216M"));
    assert!(has(&lines, "-machine q35,memory-backend=memory0,nvdimm=on"));
}

#[test]
fn a26_flash_is_read_only() {
    let flash = |variables: Option<&str>| {
        let firmware = Firmware::Flash { code: "/fw/code,1".into(), variables: variables.map(Into::into) };
        lines(&VmSpec { firmware, ..spec() }, &inherited())
    };
    let node = |number: u8, path: &str| {
        format!(
            r#"-blockdev {{"driver":"raw","node-name":"pflash{number}","read-only":true,"file":{{"driver":"file","filename":"{path}"}}}}"#
        )
    };
    let both = flash(Some("/fw/vars"));
    assert!(has(&both, "-machine q35,memory-backend=memory0,pflash0=pflash0,pflash1=pflash1"));
    assert!(has(&both, &node(0, "/fw/code,1")) && has(&both, &node(1, "/fw/vars")), "{both:?}");
    let code = flash(None);
    assert!(has(&code, "-machine q35,memory-backend=memory0,pflash0=pflash0"));
    assert!(!code.iter().any(|line| line.contains("pflash1") || line.starts_with("-bios")));
}

/// The devices of a machine with one of every virtio kind.
fn virtio_devices(virtio: VirtioPci) -> Vec<String> {
    let tag = Tag::new("kataShared").unwrap();
    let share = Some(ShareEnd::VirtioFs { tag: &tag, fs: &fs(0), fd: 8 });
    let spec = VmSpec { virtio, reclaim_freed_memory: true, ..spec() };
    let lines = lines(&spec, &Inherited { share, ..inherited() });
    lines.into_iter().filter(|line| line.contains("-pci\"")).collect()
}

#[test]
fn a7_where_the_host_is_a_virtual_machine_devices_use_the_old_interface_if_they_ever_had_it() {
    for device in virtio_devices(VirtioPci::Legacy) {
        assert_eq!(device.ends_with(r#","disable-modern":true}"#), !device.contains("\"vhost-"), "{device}");
    }
    assert!(!virtio_devices(VirtioPci::Usual).iter().any(|device| device.contains("disable")));
}

#[test]
fn a18_devices_that_can_be_are_behind_the_iommu() {
    for device in virtio_devices(VirtioPci::BehindIommu) {
        let behind = device.ends_with(r#","iommu_platform":true,"disable-legacy":"on"}"#);
        assert_eq!(behind, !device.contains("\"vhost-user-"), "{device}");
    }
}

#[test]
fn a_guest_that_gives_memory_back_has_a_balloon() {
    let lines = lines(&VmSpec { reclaim_freed_memory: true, ..spec() }, &inherited());
    assert!(has(
        &lines,
        r#"-device {"driver":"virtio-balloon-pci","id":"balloon0","free-page-reporting":true,"deflate-on-oom":true}"#
    ));
}

#[test]
fn a23_b18_devices_of_other_programs_are_dialled_by_their_sockets() {
    let device = |kind, reconnect| VhostUser::new("/run/store/a,b", kind, reconnect).unwrap();
    let vhost_user = vec![
        device(VhostUserKind::Blk, std::num::NonZeroU32::new(5)),
        device(VhostUserKind::Scsi, None),
        device(VhostUserKind::Net([2, 0, 0, 0xca, 0xfe, 1]), None),
    ];
    let lines = lines(&VmSpec { vhost_user, ..spec() }, &inherited());
    for expected in [
        "-chardev socket,id=charvhost-user0,path=/run/store/a,,b,reconnect=5",
        r#"-device {"driver":"vhost-user-blk-pci","id":"vhost-user0","chardev":"charvhost-user0"}"#,
        "-chardev socket,id=charvhost-user1,path=/run/store/a,,b",
        r#"-device {"driver":"vhost-user-scsi-pci","id":"vhost-user1","chardev":"charvhost-user1"}"#,
        "-netdev vhost-user,id=netvhost-user2,chardev=charvhost-user2",
        r#"-device {"driver":"virtio-net-pci","id":"vhost-user2","netdev":"netvhost-user2","mac":"02:00:00:ca:fe:01","mq":false,"vectors":4,"romfile":""}"#,
    ] {
        assert!(has(&lines, expected), "{expected}\n{lines:#?}");
    }
    assert!(VhostUser::new("store", VhostUserKind::Blk, None).is_err());
    assert!(VhostUser::new(format!("/{}", "x".repeat(107)), VhostUserKind::Blk, None).is_err());
}

pub(super) fn panic_dump() -> Option<PanicDump> {
    Some(PanicDump { directory: "/var/crash/s1".into(), paging: false })
}

/// A network interface on these descriptors.
fn nic_end(queues: &[RawFd], vhost: &[RawFd]) -> NicEnd {
    NicEnd { queues: queues.to_vec(), vhost: vhost.to_vec(), mac: [2, 0, 0, 0xca, 0xfe, 1] }
}

#[test]
fn a34_b12_network_interfaces_are_on_the_descriptors_of_their_taps() {
    let nics = vec![nic_end(&[20, 21], &[22, 23]), nic_end(&[24], &[])];
    let lines = lines(&spec(), &Inherited { nics, ..inherited() });
    for expected in [
        r#"-netdev {"type":"tap","id":"nic0","fds":"20:21","vhost":true,"vhostfds":"22:23"}"#,
        r#"-device {"driver":"virtio-net-pci","id":"nic0","netdev":"nic0","mac":"02:00:00:ca:fe:01","mq":true,"vectors":6,"romfile":""}"#,
        r#"-netdev {"type":"tap","id":"nic1","fds":"24","vhost":false}"#,
        r#"-device {"driver":"virtio-net-pci","id":"nic1","netdev":"nic1","mac":"02:00:00:ca:fe:01","mq":false,"vectors":4,"romfile":""}"#,
    ] {
        assert!(has(&lines, expected), "{expected}\n{lines:#?}");
    }
}

#[test]
fn a_network_interface_on_a_board_without_pci_has_nothing_of_pci() {
    let machine = Machine::Microvm(MachineOptions::default());
    let spec =
        VmSpec { machine, block: Block { driver: BlockDriver::VirtioBlk, ..Block::default() }, ..spec() };
    let lines = lines(&spec, &Inherited { nics: vec![nic_end(&[20], &[])], ..inherited() });
    let device = lines.iter().find(|line| line.contains("virtio-net")).unwrap();
    for part in [r#""driver":"virtio-net-device""#, r#""netdev":"nic0""#, r#""mac":"02:00:00:ca:fe:01""#] {
        assert!(device.contains(part), "{device}");
    }
    assert!(!device.contains("vectors") && !device.contains("romfile"), "{device}");
}
