//! What holds for every specification.

use std::collections::HashSet;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::Value;

use super::*;
use crate::spec::*;
use crate::vfio::tests::forty;

fn any_pci() -> impl Strategy<Value = PciPlaces> {
    let window =
        (1..=40_u32, 1..=40_u32).prop_map(|(mem, pref64)| Window { mem: 1 << mem, pref64: 1 << pref64 });
    (0..=5_u32, 0..=16_u32, window).prop_flat_map(|(bridges, ports, window)| {
        let places = PciPlaces::new(bridges, ports, window).unwrap();
        (0..=16_u32).prop_map(move |switch| places.with_switch(switch).unwrap())
    })
}

fn any_board() -> impl Strategy<Value = (Accelerator, Vcpus, Memory, Backing, bool)> {
    let accelerator = prop_oneof![Just(Accelerator::Kvm), Just(Accelerator::Tcg)];
    let vcpus =
        (1..=255_u32).prop_flat_map(|max| (1..=max).prop_map(move |boot| Vcpus::new(boot, max).unwrap()));
    let memory = (256..=65_536_u64, 0..=65_536_u64, 0..=256_u32)
        .prop_map(|(mib, more, slots)| Memory::new(mib, slots, mib + more).unwrap());
    let backing = prop_oneof![
        Just(Backing::Anonymous),
        Just(Backing::HugePages),
        "/[a-z,=\"\\\\ ]{1,20}".prop_map(|path| Backing::Directory(path.into())),
    ];
    (accelerator, vcpus, memory, backing, any::<bool>())
}

fn any_ends() -> impl Strategy<Value = (Boot, Console, VsockEnd, Option<ExtraMonitor>, bool)> {
    let boot = prop_oneof![
        Just(Boot::Initrd("/guest/initrd".into())),
        prop_oneof![Just(ImageDriver::VirtioBlk), Just(ImageDriver::Nvdimm), Just(ImageDriver::VirtioPmem)]
            .prop_map(|driver| Boot::Image {
                path: "/guest/image".into(),
                fs: ImageFs::Ext4,
                driver,
                verity: None
            }),
    ];
    let console = prop_oneof![Just(Console::Virtio), Just(Console::Serial)];
    let vsock = prop_oneof![
        (3..=u32::MAX).prop_map(|cid| VsockEnd::Vhost { fd: 30, cid }),
        Just(VsockEnd::VhostUser { fd: 30 })
    ];
    let monitor = prop_oneof![
        Just(None),
        Just(Some(ExtraMonitor::Hmp)),
        Just(Some(ExtraMonitor::Qmp)),
        Just(Some(ExtraMonitor::QmpPretty))
    ];
    (boot, console, vsock, monitor, any::<bool>())
}

fn any_extras() -> impl Strategy<Value = (Block, Firmware, Vec<VhostUser>, Option<Numa>, [bool; 3])> {
    let driver =
        prop_oneof![Just(BlockDriver::VirtioScsi), Just(BlockDriver::VirtioBlk), Just(BlockDriver::Nvdimm)];
    let block = (driver, any::<bool>(), 0..=64_u32).prop_map(|(driver, own, independent)| Block {
        driver,
        threads: IoThreads::new(own, independent).unwrap(),
        ..Block::default()
    });
    let firmware = prop_oneof![
        Just(Firmware::BuiltIn),
        Just(Firmware::Bios("/fw/bios".into())),
        Just(Firmware::Flash { code: "/fw/code".into(), variables: Some("/fw/vars".into()) }),
    ];
    let kind = prop_oneof![
        Just(VhostUserKind::Blk),
        Just(VhostUserKind::Scsi),
        any::<[u8; 6]>().prop_map(VhostUserKind::Net)
    ];
    let vhost_user = kind.prop_map(|kind| VhostUser::new("/run/a", kind, None).unwrap());
    let numa = prop::option::of((1..=8_usize).prop_map(|nodes| Numa::new(vec![vec![0]; nodes]).unwrap()));
    (block, firmware, prop::collection::vec(vhost_user, 0..=12), numa, any::<[bool; 3]>())
}

fn any_virtio() -> impl Strategy<Value = VirtioPci> {
    prop_oneof![Just(VirtioPci::Usual), Just(VirtioPci::Legacy), Just(VirtioPci::BehindIommu)]
}

/// With the firmware each has to have.
fn any_protection() -> impl Strategy<Value = (Protection, Firmware)> {
    let (bios, c_bit) = (Firmware::Bios("/fw/bios".into()), CBit::new(51).unwrap());
    let flash = Firmware::Flash { code: "/fw/code".into(), variables: None };
    let tdx = prop::option::of(1..=u32::MAX).prop_map(|quotes| Protection::Tdx { quotes });
    let snp = any::<u64>().prop_map(move |policy| Protection::Snp { c_bit, policy, identity: None });
    let sev = any::<bool>().prop_map(move |encrypted_state| Protection::Sev { c_bit, encrypted_state });
    prop_oneof![
        prop_oneof![tdx, snp].prop_map(move |protection| (protection, bios.clone())),
        sev.prop_map(move |protection| (protection, flash.clone())),
    ]
}

/// A machine that stays as it starts, and has no memory but that.
fn as_it_is(spec: VmSpec) -> VmSpec {
    let boot = match spec.boot {
        Boot::Image { path, fs, verity, .. } => {
            Boot::Image { path, fs, driver: ImageDriver::VirtioBlk, verity }
        }
        initrd @ Boot::Initrd(_) => initrd,
    };
    let (cpus, mib) = (spec.vcpus.boot(), spec.memory.mib());
    let driver = match spec.block.driver {
        BlockDriver::Nvdimm => BlockDriver::VirtioBlk,
        driver => driver,
    };
    VmSpec {
        boot,
        vcpus: Vcpus::new(cpus, cpus).unwrap(),
        memory: Memory::new(mib, 0, mib).unwrap(),
        block: Block { driver, ..spec.block },
        iommu: false,
        ..spec
    }
}

fn any_origin() -> impl Strategy<Value = Origin> {
    let (memory, state) = (PathBuf::from("/template/memory"), PathBuf::from("/template/state"));
    let copy = |restore| Origin::Copy { memory: memory.clone(), state: state.clone(), restore };
    prop_oneof![
        Just(Origin::Template { memory: memory.clone() }),
        Just(copy(Restore::Load)),
        Just(copy(Restore::CopyOnWrite)),
    ]
}

fn any_pass_through() -> impl Strategy<Value = PassThrough> {
    let port = prop_oneof![Just(VfioPort::Bridge), Just(VfioPort::Root), Just(VfioPort::Switch)];
    let some = prop::sample::subsequence(forty(), 0..=40).prop_shuffle();
    (some, port).prop_map(|(devices, port)| PassThrough::Cold { devices, port })
}

/// Every identifier of a command line, each kind of thing by itself, and every place on a bus.
fn claims(arguments: &[OsString]) -> Vec<String> {
    let mut claims = Vec::new();
    for pair in arguments.windows(2) {
        let (option, value) = (pair[0].to_string_lossy(), pair[1].to_string_lossy());
        let kind = match option.as_ref() {
            "-device" => "device",
            "-object" => "object",
            "-blockdev" => "block",
            "-chardev" => "chardev",
            "-fsdev" => "fsdev",
            "-netdev" => "netdev",
            "-add-fd" => "fdset",
            _ => continue,
        };
        let Ok(json) = serde_json::from_str::<Value>(&value) else {
            let name = if kind == "fdset" { "set=" } else { "id=" };
            let id = value.split(',').find_map(|word| word.strip_prefix(name)).unwrap();
            claims.push(format!("{kind} {id}"));
            continue;
        };
        for name in ["id", "node-name"] {
            claims.extend(json.get(name).map(|id| format!("{kind} {id}")));
        }
        if let (Some(bus), Some(addr)) = (json.get("bus"), json.get("addr")) {
            claims.push(format!("address {bus} {addr}"));
        }
        if let (Some(chassis), Some(slot)) = (json.get("chassis"), json.get("slot")) {
            claims.push(format!("slot {chassis} {slot}"));
        }
        claims.extend(json.get("chassis_nr").map(|number| format!("chassis {number}")));
    }
    claims
}

/// Bridges and ports say that they are on it; whatever else is on PCI and says nothing is on it too.
fn is_on_root_bus(device: &OsString) -> bool {
    let device: Value = serde_json::from_str(&device.to_string_lossy()).unwrap();
    let driver = device["driver"].as_str().unwrap();
    device["bus"] == "pcie.0" || device.get("bus").is_none() && driver.ends_with("-pci")
}

/// Renders the machine with descriptors that are made up.
fn rendered(spec: &VmSpec, vsock: VsockEnd, shares: u8) -> (Vec<OsString>, bool) {
    let (tag, fs) = (Tag::new("kataShared").unwrap(), super::tests::fs(0));
    // What other programs serve comes later to a machine that has its state from elsewhere.
    let is_first = spec.origin == Origin::Boot;
    let share = match shares {
        0 => None,
        1 => Some(ShareEnd::Virtio9p { tag: &tag, source: Path::new("/run/kata/a,b/share") }),
        _ => is_first.then_some(ShareEnd::VirtioFs { tag: &tag, fs: &fs, fd: 31 }),
    };
    let has_share = share.is_some();
    let inherited = Inherited {
        qmp: 10,
        console: 11,
        extra_monitor: Some(12),
        image: matches!(spec.boot, Boot::Image { .. }).then_some(ImageEnd { fd: 20, size: 64 << 20 }),
        extensions: vec![21, 22],
        share,
        vsock: is_first.then_some(vsock),
        nics: Vec::new(),
        memory: (!is_first).then_some(9),
        ticks_per_ms: None,
    };
    (render(spec, &inherited), has_share)
}

fn are_distinct(claims: &[String]) -> Result<(), TestCaseError> {
    let distinct: HashSet<&String> = claims.iter().collect();
    prop_assert_eq!(distinct.len(), claims.len(), "{:?}", claims);
    Ok(())
}

fn nothing_is_given_twice(spec: &VmSpec, vsock: VsockEnd, shares: u8) -> Result<(), TestCaseError> {
    let (arguments, has_share) = rendered(spec, vsock, shares);
    are_distinct(&claims(&arguments))?;
    // Whether there is room is told from the specification alone.
    let counted =
        arguments.windows(2).filter(|pair| pair[0] == "-device" && is_on_root_bus(&pair[1])).count();
    let expected =
        spec.root_bus_slots() as usize - usize::from(spec.share.is_some()) + usize::from(has_share);
    prop_assert_eq!(counted, expected);
    Ok(())
}

proptest! {
    #[test]
    fn no_identifier_slot_or_address_is_given_twice(
        (accelerator, vcpus, memory, backing, prealloc) in any_board(),
        (boot, console, vsock, extra_monitor, iommu) in any_ends(),
        pci in any_pci(),
        (block, firmware, vhost_user, numa, [reclaim_freed_memory, pvpanic, virtio_mem]) in any_extras(),
        pass_through in any_pass_through(),
        virtio in any_virtio(),
        shares in 0..3_u8,
    ) {
        let spec = VmSpec {
            accelerator, vcpus, memory, backing, prealloc, boot, console, extra_monitor, iommu, pci, virtio,
            block, firmware, vhost_user, numa, reclaim_freed_memory, virtio_mem, pass_through,
            extensions: super::tests::images::extensions(),
            panic_dump: pvpanic.then(super::tests::panic_dump).flatten(),
            ..super::tests::spec()
        };
        nothing_is_given_twice(&spec, vsock, shares)?;
        if let (Ok(found), PassThrough::Cold { devices, .. }) = (spec.passed_through(), &spec.pass_through) {
            let places: HashSet<String> = found.iter().map(|device| device.at.to_string()).collect();
            prop_assert_eq!(places.len(), devices.len());
        }
    }

    #[test]
    fn nor_is_it_to_machines_whose_memory_is_protected(
        (_, vcpus, memory, backing, prealloc) in any_board(),
        (boot, console, vsock, extra_monitor, _) in any_ends(),
        pci in any_pci(),
        (block, ..) in any_extras(),
        (protection, firmware) in any_protection(),
        shares in 0..3_u8,
    ) {
        let spec = as_it_is(VmSpec {
            vcpus, memory, backing, prealloc, boot, console, extra_monitor, pci, block, firmware,
            protection: Some(protection),
            accelerator: Accelerator::Kvm,
            virtio: VirtioPci::BehindIommu,
            extensions: super::tests::images::extensions(),
            ..super::tests::spec()
        });
        prop_assume!(spec.root_bus_slots() <= 30);
        prop_assert_eq!(spec.check(), Ok(()));
        nothing_is_given_twice(&spec, vsock, shares)?;
    }

    #[test]
    fn nor_is_it_to_machines_without_pci_which_have_no_device_for_that(
        (accelerator, vcpus, memory, backing, prealloc) in any_board(),
        (boot, console, vsock, extra_monitor, _) in any_ends(),
        (block, .., [_, _, virtio_mem]) in any_extras(),
        firmware in prop_oneof![Just(Firmware::BuiltIn), Just(Firmware::Bios("/fw/bios".into()))],
        shares in 0..3_u8,
    ) {
        let spec = as_it_is(VmSpec {
            accelerator, vcpus, memory, backing, prealloc, boot, console, extra_monitor, block, firmware,
            virtio_mem,
            machine: Machine::Microvm(MachineOptions::default()),
            pci: PciPlaces::new(0, 0, Window::default()).unwrap(),
            extensions: super::tests::images::extensions(),
            ..super::tests::spec()
        });
        prop_assert_eq!(spec.check(), Ok(()));
        let (arguments, has_share) = rendered(&spec, vsock, shares);
        are_distinct(&claims(&arguments))?;
        let devices = arguments.windows(2).filter(|pair| pair[0] == "-device").map(|pair| &pair[1]);
        let devices: Vec<_> = devices.map(|device| device.to_string_lossy()).collect();
        for device in &devices {
            prop_assert!(!device.contains("-pci\"") && !device.contains("pcie"), "{}", device);
        }
        let in_windows = devices.iter().filter(|device| device.contains("-device\"")).count();
        let expected =
            spec.root_bus_slots() as usize - usize::from(spec.share.is_some()) + usize::from(has_share);
        prop_assert_eq!(in_windows, expected, "{:?}", devices);
    }

    #[test]
    fn nor_is_it_to_templates_and_their_copies(
        (accelerator, vcpus, memory, ..) in any_board(),
        (_, console, vsock, extra_monitor, _) in any_ends(),
        pci in any_pci(),
        (block, firmware, _, _, [_, pvpanic, virtio_mem]) in any_extras(),
        origin in any_origin(),
        shares in 0..3_u8,
    ) {
        let spec = VmSpec {
            accelerator, vcpus, memory, console, extra_monitor, pci, block, firmware, virtio_mem, origin,
            extensions: super::tests::images::extensions(),
            panic_dump: pvpanic.then(super::tests::panic_dump).flatten(),
            ..super::tests::spec()
        };
        prop_assert_eq!(spec.against_template(), None);
        nothing_is_given_twice(&spec, vsock, shares)?;
    }
}
