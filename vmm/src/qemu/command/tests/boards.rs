//! Boards other than the usual one.

use super::*;

fn fixed(machine: Machine) -> VmSpec {
    let (vcpus, memory) = (Vcpus::new(2, 2).unwrap(), Memory::new(512, 0, 512).unwrap());
    VmSpec { machine, vcpus, memory, ..spec() }
}

fn microvm() -> VmSpec {
    fixed(Machine::Microvm(MachineOptions::default()))
}

#[test]
fn a8_a_microvm_has_its_devices_without_pci() {
    let expected = r#"-global virtio-mmio.force-legacy=false
-bios qboot.rom
-accel kvm
-machine microvm,acpi=on,isa-serial=off,memory-backend=memory0
-cpu host,pmu=off
-smp 2,cores=1,threads=1,sockets=2,maxcpus=2
-m 512M
-object {"qom-type":"memory-backend-memfd","id":"memory0","size":536870912,"share":true}
-rtc base=utc,driftfix=slew,clock=host
-global kvm-pit.lost_tick_policy=discard
-chardev socket,id=qmp0,fd=5
-mon chardev=qmp0,mode=control
-chardev socket,id=charconsole0,fd=6
-device {"driver":"virtio-serial-device","id":"serial0"}
-device {"chardev":"charconsole0","driver":"virtconsole","id":"console0"}
-object {"qom-type":"rng-random","id":"rng0","filename":"/dev/urandom"}
-device {"driver":"virtio-rng-device","id":"virtio-rng0","rng":"rng0"}
-device {"driver":"virtio-scsi-device","id":"scsi0","num_queues":1,"virtqueue_size":128}
-device {"driver":"vhost-vsock-device","guest-cid":1234,"id":"vsock0","vhostfd":"7"}
-kernel /guest/vmlinuz
-initrd /guest/initrd.img
-append tsc=reliable no_timer_check rcupdate.rcu_expedited=1 noreplace-smp reboot=t cryptomgr.notests net.ifnames=0 pci=off console=hvc0 quiet panic=1 oops=panic nr_cpus=2 scsi_mod.scan=none agent.log=info"#;
    assert_eq!(microvm().check(), Ok(()));
    assert_eq!(lines(&microvm(), &inherited())[7..].join("\n"), expected);
    let told = lines(&microvm(), &Inherited { ticks_per_ms: Some(2_400_000), ..inherited() }).join(" ");
    assert!(told.contains(" pci=off tsc_early_khz=2400000 console=hvc0 "), "{told}");
    let emulated = lines(&VmSpec { accelerator: Accelerator::Tcg, ..microvm() }, &inherited()).join(" ");
    assert!(emulated.contains(" lapic.timer_hz=1000000000 "), "{emulated}");
    let socket = |kind| VhostUser::new("/run/a", kind, None).unwrap();
    let vhost_user = vec![socket(VhostUserKind::Blk), socket(VhostUserKind::Scsi)];
    let lines = lines(&VmSpec { vhost_user, ..microvm() }, &inherited());
    for name in ["vhost-user-blk", "vhost-user-scsi"] {
        assert!(lines.iter().any(|line| line.contains(&format!(r#""driver":"{name}""#))), "{lines:?}");
    }
}

#[test]
fn a8_the_board_of_arm_has_its_own_clock_port_and_interrupts() {
    let virt = || fixed(Machine::Virt(MachineOptions::parse("usb=off").unwrap()));
    assert_eq!(virt().check(), Ok(()));
    let by_kvm = lines(&VmSpec { console: Console::Serial, ..virt() }, &inherited());
    for expected in [
        "-machine virt,gic-version=host,memory-backend=memory0,usb=off",
        "-cpu host,pmu=off",
        "-rtc base=utc,clock=host",
        "-serial chardev:charconsole0",
        "-append rcupdate.rcu_expedited=1 cryptomgr.notests net.ifnames=0 iommu.passthrough=0 console=ttyAMA0 quiet \
         panic=1 oops=panic nr_cpus=2 scsi_mod.scan=none agent.log=info",
    ] {
        assert!(has(&by_kvm, expected), "{expected}\n{by_kvm:#?}");
    }
    assert!(!by_kvm.iter().any(|line| line.contains("isa") || line.contains("kvm-pit")), "{by_kvm:?}");
    let translated = lines(&VmSpec { accelerator: Accelerator::Tcg, ..virt() }, &inherited());
    assert!(has(&translated, "-machine virt,gic-version=max,memory-backend=memory0,usb=off"));
    assert!(has(&translated, "-cpu max,pmu=off"));
    assert!(!translated.join(" ").contains("lapic"), "{translated:?}");
}

#[test]
fn a5_what_a_board_has_not_is_refused() {
    let image = |driver| Boot::Image { path: "/guest/image".into(), fs: ImageFs::Ext4, driver, verity: None };
    let window = Window::default();
    let growing = Memory::new(512, 1, 1024).unwrap();
    let flash = Firmware::Flash { code: "/fw".into(), variables: None };
    for spec in [
        VmSpec { iommu: true, ..microvm() },
        VmSpec { vcpus: Vcpus::new(1, 2).unwrap(), ..microvm() },
        VmSpec { memory: growing, ..microvm() },
        VmSpec { memory: Memory::new(512, 0, 512).unwrap().with_room(1).unwrap(), ..microvm() },
        VmSpec { boot: image(ImageDriver::Nvdimm), ..microvm() },
        VmSpec { boot: image(ImageDriver::VirtioPmem), ..microvm() },
        VmSpec { block: Block { driver: BlockDriver::Nvdimm, ..Block::default() }, ..microvm() },
        VmSpec { pci: PciPlaces::new(1, 0, window).unwrap(), ..microvm() },
        VmSpec { virtio: VirtioPci::Legacy, ..microvm() },
        VmSpec { firmware: flash, ..microvm() },
        VmSpec { iommu: true, ..fixed(Machine::Virt(MachineOptions::default())) },
    ] {
        let error = spec.check().unwrap_err();
        assert!(error.to_string().contains(" cannot be had with the board "), "{error}");
    }
    assert_eq!(VmSpec { boot: image(ImageDriver::VirtioBlk), ..microvm() }.check(), Ok(()));
    let q35 = Machine::Q35(MachineOptions::default());
    assert!(q35.capabilities().cpu_hot_plug && q35.capabilities().iommu);
}

#[test]
fn numa_nodes_have_memory_of_the_host_nodes_they_are_on() {
    let numa = Numa::new(vec![vec![0], vec![2, 3]]).unwrap();
    let numa = Some(numa.with_distances(vec![vec![10, 21], vec![21, 10]]).unwrap());
    let spec = VmSpec { numa, ..fixed(Machine::Q35(MachineOptions::default())) };
    assert_eq!(spec.check(), Ok(()));
    let lines = lines(&spec, &inherited());
    for expected in [
        "-machine q35",
        r#"-object {"qom-type":"memory-backend-memfd","id":"memory0","size":268435456,"share":true,"host-nodes":[0],"policy":"bind"}"#,
        "-numa node,nodeid=0,cpus=0-0,memdev=memory0",
        r#"-object {"qom-type":"memory-backend-memfd","id":"memory1","size":268435456,"share":true,"host-nodes":[2,3],"policy":"bind"}"#,
        "-numa node,nodeid=1,cpus=1-1,memdev=memory1",
        "-numa dist,src=0,dst=1,val=21",
        "-numa dist,src=1,dst=0,val=21",
    ] {
        assert!(has(&lines, expected), "{expected}\n{lines:#?}");
    }
    let numa = || Some(Numa::new(vec![vec![0]; 3]).unwrap());
    let small = Memory::new(2, 0, 2).unwrap();
    assert!(VmSpec { numa: numa(), vcpus: Vcpus::new(1, 2).unwrap(), ..spec.clone() }.check().is_err());
    assert!(VmSpec { numa: numa(), memory: small, ..spec }.check().is_err());
    assert!(VmSpec { numa: numa(), ..microvm() }.check().is_err());
}

#[test]
fn a30_a_switch_is_behind_a_port_with_room_for_all_of_its_own() {
    let window = Window { mem: 4 << 20, pref64: 1 << 30 };
    let pci = PciPlaces::new(0, 1, window).unwrap().with_switch(3).unwrap();
    let lines = lines(&VmSpec { pci, ..spec() }, &inherited());
    let devices = lines.iter().filter(|line| line.starts_with("-device"));
    let ports: Vec<&str> =
        devices.filter(|line| line.contains("rp") || line.contains("sw")).map(String::as_str).collect();
    let expected = [
        r#"-device {"driver":"pcie-root-port","id":"rp0","bus":"pcie.0","addr":"7","chassis":0,"slot":0,"mem-reserve":4194304,"pref64-reserve":1073741824}"#,
        r#"-device {"driver":"pcie-root-port","id":"rp1","bus":"pcie.0","addr":"8","chassis":0,"slot":1,"mem-reserve":16777216,"pref64-reserve":4294967296}"#,
        r#"-device {"driver":"x3130-upstream","id":"swup0","bus":"rp1"}"#,
        r#"-device {"driver":"xio3130-downstream","id":"swdp0","bus":"swup0","chassis":1,"slot":0}"#,
        r#"-device {"driver":"xio3130-downstream","id":"swdp1","bus":"swup0","chassis":1,"slot":1}"#,
        r#"-device {"driver":"xio3130-downstream","id":"swdp2","bus":"swup0","chassis":1,"slot":2}"#,
    ];
    assert_eq!(ports, expected);
}

#[test]
fn a28_enclaves_have_memory_that_is_taken_at_the_start() {
    let sgx_epc = Some(SgxEpc::parse("64Mi").unwrap());
    let spec = VmSpec { sgx_epc, ..spec() };
    let lines = lines(&spec, &inherited());
    assert!(has(
        &lines,
        r#"-object {"qom-type":"memory-backend-epc","id":"epc0","size":67108864,"prealloc":true}"#
    ));
    assert!(has(&lines, "-machine q35,memory-backend=memory0,sgx-epc.0.memdev=epc0,sgx-epc.0.node=0"));
    assert!(VmSpec { accelerator: Accelerator::Tcg, ..spec }.check().is_err());
    assert!(VmSpec { sgx_epc, ..microvm() }.check().is_err());
}

#[test]
fn a19_a_panic_is_told_and_halts_the_guest() {
    let told = lines(&VmSpec { panic_dump: panic_dump(), ..spec() }, &inherited());
    assert!(has(&told, r#"-device {"driver":"pvpanic","id":"pvpanic0"}"#));
    assert!(has(&told, "-action panic=pause"));
    let virt = fixed(Machine::Virt(MachineOptions::default()));
    let on_arm = lines(&VmSpec { panic_dump: panic_dump(), ..virt }, &inherited());
    assert!(has(&on_arm, r#"-device {"driver":"pvpanic-pci","id":"pvpanic0"}"#));
    assert!(VmSpec { panic_dump: panic_dump(), ..microvm() }.check().is_err());
    assert!(!lines(&spec(), &inherited()).iter().any(|line| line.contains("panic=pause")));
}

#[test]
fn b18_a_share_has_a_window_of_files_where_one_is_asked_for() {
    let tag = Tag::new("kataShared").unwrap();
    let share = Some(ShareEnd::VirtioFs { tag: &tag, fs: &fs(64), fd: 8 });
    let lines = lines(&spec(), &Inherited { share, ..inherited() });
    assert!(
        lines.iter().any(|line| line.ends_with(r#""queue-size":1024,"cache-size":67108864}"#)),
        "{lines:?}"
    );
}

#[test]
fn a15_a_root_bus_without_room_is_refused() {
    let disk = VhostUser::new("/run/a", VhostUserKind::Blk, None).unwrap();
    let pci = PciPlaces::new(5, 16, Window::default()).unwrap().with_switch(1).unwrap();
    let with = |disks| VmSpec { pci, vhost_user: vec![disk.clone(); disks], ..spec() };
    assert_eq!(with(4).check(), Ok(()));
    assert_eq!(with(5).check(), Err(SpecError::Places { asked: 31, most: 30 }));
    let usb = |word| Machine::Q35(MachineOptions::parse(word).unwrap());
    let with_usb = |word| VmSpec { machine: usb(word), ..with(4) }.check();
    assert_eq!(with_usb("usb=on"), Err(SpecError::Places { asked: 31, most: 30 }));
    assert_eq!(with_usb("usb=on,usb=off"), Ok(()));
}

#[test]
fn a8_a_board_without_pci_has_places_for_so_many_devices() {
    let disk = VhostUser::new("/run/a", VhostUserKind::Blk, None).unwrap();
    let with = |options, count| {
        let machine = Machine::Microvm(MachineOptions::parse(options).unwrap());
        VmSpec { vhost_user: vec![disk.clone(); count], ..fixed(machine) }.check()
    };
    let own = 4;
    for (options, most) in [("", 24), ("ioapic2=on", 24), ("ioapic2=off", 8)] {
        assert_eq!(with(options, most - own), Ok(()), "{options}");
        let (asked, most) = (most as u32 + 1, most as u32);
        assert_eq!(
            with(options, most as usize - own + 1),
            Err(SpecError::Places { asked, most }),
            "{options}"
        );
    }
}
