//! Whole command lines, and what differs between machines.

use super::*;
use crate::spec::*;

pub(super) fn spec() -> VmSpec {
    VmSpec {
        name: VmName::new("sandbox-pod-1").unwrap(),
        uuid: VmUuid::new("01234567-89ab-4def-8123-456789abcdef").unwrap(),
        run_dir: "/run/kata/k8s.io/pod-1".into(),
        qemu: "/usr/bin/qemu-system-x86_64".into(),
        machine: Machine::Q35(MachineOptions::default()),
        accelerator: Accelerator::Kvm,
        cpu_features: CpuFeatures::parse("pmu=off").unwrap(),
        vcpus: Vcpus::new(1, 8).unwrap(),
        memory: Memory::new(2048, 10, 8192).unwrap(),
        iommu: false,
        pci: PciPlaces::new(0, 0, Window { mem: 4 << 20, pref64: 4 << 20 }).unwrap(),
        backing: Backing::Anonymous,
        prealloc: false,
        virtio_mem: false,
        kernel: "/guest/vmlinuz".into(),
        boot: Boot::Initrd("/guest/initrd.img".into()),
        firmware: None,
        kernel_params: vec![KernelParam::new("agent.log=info").unwrap()],
        console: Console::Virtio,
        entropy: "/dev/urandom".into(),
        share: None,
        vsock: VsockSpec::Vhost,
        seccomp: None,
        extra_monitor: None,
        debug: false,
    }
}

fn inherited() -> Inherited<'static> {
    Inherited { qmp: 5, console: 6, image: None, share: None, vsock: VsockEnd::Vhost { fd: 7, cid: 1234 } }
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
fn a_machine_with_kvm_and_an_initrd_is_this_line() {
    let expected = r#"-name sandbox-pod-1
-uuid 01234567-89ab-4def-8123-456789abcdef
-no-user-config
-nodefaults
-no-reboot
-S
-display none
-machine q35,accel=kvm,memory-backend=memory0
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
-device {"driver":"vhost-vsock-pci","id":"vsock0","guest-cid":1234,"vhostfd":"7"}
-kernel /guest/vmlinuz
-initrd /guest/initrd.img
-append tsc=reliable no_timer_check rcupdate.rcu_expedited=1 i8042.direct=1 i8042.dumbkbd=1 i8042.nopnp=1 i8042.noaux=1 noreplace-smp reboot=k cryptomgr.notests net.ifnames=0 pci=lastbus=0 console=hvc0 quiet panic=1 nr_cpus=8 agent.log=info"#;
    assert_eq!(lines(&spec(), &inherited()).join("\n"), expected);
}

#[test]
fn without_kvm_the_processor_is_the_translators_best() {
    let lines = lines(&VmSpec { accelerator: Accelerator::Tcg, ..spec() }, &inherited());
    assert!(has(&lines, "-machine q35,accel=tcg,memory-backend=memory0"));
    assert!(has(&lines, "-cpu max,erms=off,fsrm=off,pmu=off"));
    assert!(!lines.iter().any(|line| line.contains("kvm")), "{lines:?}");
}

#[test]
fn machine_options_are_written_as_new_and_old_releases_take_them() {
    let machine = Machine::Q35(MachineOptions::parse("nosmm, vmport=off,usb").unwrap());
    let lines = lines(&VmSpec { machine, ..spec() }, &inherited());
    assert!(has(&lines, "-machine q35,accel=kvm,memory-backend=memory0,smm=off,vmport=off,usb=on"));
}

#[test]
fn memory_that_cannot_grow_has_no_slots() {
    let lines = lines(&VmSpec { memory: Memory::new(512, 0, 512).unwrap(), ..spec() }, &inherited());
    assert!(has(&lines, "-m 512M"));
}

#[test]
fn an_image_is_a_raw_disk_that_the_guest_cannot_write() {
    let boot = Boot::Image { path: "/guest/image".into(), fs: ImageFs::Ext4 };
    let lines = lines(&VmSpec { boot, ..spec() }, &Inherited { image: Some(9), ..inherited() });
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
            " quiet systemd.show_status=false panic=1 nr_cpus=8 systemd.unit=kata-containers.target "
        )
    );
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
    let share = Some(ShareEnd::VirtioFs { tag: &tag, queue_size: 1024, fd: 8 });
    let inherited = Inherited { share, vsock: VsockEnd::VhostUser { fd: 9 }, ..inherited() };
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
        firmware: Some("/fw,1".into()),
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
    assert!(lines.last().unwrap().ends_with(" console=ttyS0 debug panic=1 nr_cpus=8 panic=0 x=\"a b\""));
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
        let lines = lines(&VmSpec { extra_monitor: Some(kind), ..spec() }, &inherited());
        assert!(has(&lines, "-chardev socket,id=monitor1,path=extra-monitor.sock,server=on,wait=off"));
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
    let port = r#"-device {"driver":"pcie-root-port","id":"rp0","bus":"pcie.0","chassis":0,"slot":0,"mem-reserve":4194304,"pref64-reserve":68719476736}"#;
    assert_eq!(devices, [&bridge(0), &bridge(1), port]);
}

#[test]
fn a18_an_iommu_comes_first_and_the_guest_is_told_to_use_it() {
    let lines = lines(&VmSpec { iommu: true, ..spec() }, &inherited());
    let first = lines.iter().find(|line| line.starts_with("-device")).unwrap();
    let iommu =
        r#"{"driver":"intel-iommu","id":"iommu0","intremap":"on","device-iotlb":true,"caching-mode":true}"#;
    assert_eq!(*first, format!("-device {iommu}"));
    assert!(has(&lines, "-machine q35,accel=kvm,memory-backend=memory0,kernel_irqchip=split"));
    let append = lines.iter().find(|line| line.starts_with("-append")).unwrap();
    assert!(append.contains(" intel_iommu=on iommu=pt "), "{append}");
}
