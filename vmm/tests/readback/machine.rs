//! The usual board: who the machine is, what it is made of and what its kernel is told.

use serde_json::{Value, json};
use vmm::spec::{Boot, Console, CpuFeatures, ImageDriver, ImageFs, Machine as Board, MachineOptions, Vcpus};

use crate::Machine;
use crate::common::{Fixture, status};

#[tokio::test]
async fn a32_the_machine_has_the_name_and_the_uuid_it_was_given() {
    let mut machine = Machine::boot(Fixture::new()).await;
    assert_eq!(machine.ask("query-name", json!({})), json!({"name": "test"}));
    let uuid = machine.fixture.spec.uuid.to_string();
    assert_eq!(machine.ask("query-uuid", json!({})), json!({"UUID": uuid}));
    machine.end().await;
}

#[tokio::test]
async fn b3_a_machine_is_paused_when_it_is_told_to_and_runs_before_and_afterwards() {
    let mut machine = Machine::boot(Fixture::new()).await;
    let status = |machine: &mut Machine| machine.ask("query-status", json!({}))["status"].take();
    assert_eq!(status(&mut machine), "running");
    machine.vm.pause().await.unwrap();
    assert_eq!(status(&mut machine), "paused");
    machine.vm.resume().await.unwrap();
    assert_eq!(status(&mut machine), "running");
    machine.end().await;
}

#[tokio::test]
async fn a8_the_board_is_q35_with_the_options_of_the_operator() {
    for (options, smm, vmport) in [("nosmm,vmport=off", "off", "off"), ("smm=on,vmport=on", "on", "on")] {
        let mut fixture = Fixture::new();
        fixture.spec.machine = Board::Q35(MachineOptions::parse(options).unwrap());
        let mut machine = Machine::boot(fixture).await;
        let board = machine.property("/machine", "type");
        assert!(board.as_str().unwrap().starts_with("pc-q35-"), "{board}");
        assert_eq!(machine.property("/machine", "smm"), smm);
        assert_eq!(machine.property("/machine", "vmport"), vmport);
        assert_eq!(machine.property("/machine", "memory-backend"), "/objects/memory0");
        machine.end().await;
    }
}

#[tokio::test]
async fn a9_there_are_as_many_processors_as_asked_for_and_places_for_the_most() {
    let mut fixture = Fixture::new();
    fixture.spec.vcpus = Vcpus::new(2, 5).unwrap();
    let mut machine = Machine::boot(fixture).await;
    let smp = machine.property("/machine", "smp");
    for (part, count) in [("cpus", 2), ("maxcpus", 5), ("sockets", 5), ("cores", 1), ("threads", 1)] {
        assert_eq!(smp[part], count, "{part}");
    }
    let places = machine.ask("query-hotpluggable-cpus", json!({}));
    let places = places.as_array().unwrap();
    assert_eq!(places.len(), 5);
    assert_eq!(places.iter().filter(|place| place.get("qom-path").is_some()).count(), 2);
    machine.end().await;
}

#[tokio::test]
async fn a12_the_processor_has_the_features_of_the_operator_and_no_others_are_changed() {
    let mut fixture = Fixture::new();
    fixture.spec.cpu_features = CpuFeatures::parse("pmu=off,avx2=off").unwrap();
    let mut machine = Machine::boot(fixture).await;
    let processor = machine.ask("query-cpus-fast", json!({}))[0]["qom-path"].take();
    let processor = processor.as_str().unwrap();
    assert_eq!(machine.property(processor, "type"), "max-x86_64-cpu");
    for (feature, has) in [("pmu", false), ("avx2", false), ("erms", false), ("fsrm", false), ("avx", true)] {
        assert_eq!(machine.property(processor, feature), has, "{feature}");
    }
    machine.end().await;
}

/// The clock's object, which is in another place in each release.
fn clock(machine: &mut Machine, at: &str, depth: u8) -> Option<String> {
    let parts = machine.ask("qom-list", json!({"path": at}));
    for part in parts.as_array().unwrap() {
        let kind = part["type"].as_str().unwrap();
        let path = format!("{at}/{}", part["name"].as_str().unwrap());
        if kind == "child<mc146818rtc>" {
            return Some(path);
        }
        if depth > 0 && kind == "child<ICH9-LPC>" {
            return clock(machine, &path, depth - 1);
        }
    }
    None
}

#[tokio::test]
async fn a24_a25_a_machine_has_what_it_was_asked_for_and_its_clock_makes_up_for_lost_ticks() {
    let mut machine = Machine::boot(Fixture::new()).await;
    let rtc = clock(&mut machine, "/machine/unattached", 1).unwrap();
    assert_eq!(machine.property(&rtc, "lost_tick_policy"), "slew");
    // No screen, no network, no drives: of what QEMU adds by itself nothing is left.
    let buses = machine.ask("query-pci", json!({}));
    let devices = buses[0]["devices"].as_array().unwrap();
    let named = |device: &Value| device["qdev_id"].as_str().unwrap_or_default().to_owned();
    let mut ids: Vec<_> = devices.iter().map(named).filter(|id| !id.is_empty()).collect();
    ids.sort();
    assert_eq!(ids, ["fs0", "scsi0", "virtio-rng0", "vsock0"]);
    let unnamed = devices.iter().filter(|device| named(device).is_empty());
    // The host bridge, and the LPC bridge, the SATA and the SMBus controller that the board is made of.
    let classes: Vec<_> = unnamed.map(|device| device["class_info"]["class"].as_u64().unwrap()).collect();
    assert_eq!(classes, [0x0600, 0x0601, 0x0106, 0x0c05]);
    assert_eq!(machine.ask("query-block", json!({})), json!([]));
    machine.end().await;
}

#[tokio::test]
async fn a31_without_a_filter_qemu_is_not_under_one() {
    let mut fixture = Fixture::new();
    fixture.spec.seccomp = None;
    let machine = Machine::boot(fixture).await;
    let of_this_process = status(std::process::id(), "Seccomp");
    assert_eq!(status(machine.vm.pid(), "Seccomp"), of_this_process);
    machine.end().await;
}

#[tokio::test]
async fn a29_random_numbers_come_from_the_file_of_the_operator() {
    let mut fixture = Fixture::new();
    fixture.spec.entropy = "/dev/random".into();
    let mut machine = Machine::boot(fixture).await;
    assert_eq!(machine.property("/objects/rng0", "filename"), "/dev/random");
    assert_eq!(machine.property("/machine/peripheral/virtio-rng0", "rng"), "/objects/rng0");
    machine.end().await;
}

/// The words of the kernel's command line that QEMU has.
fn words(machine: &mut Machine) -> Vec<String> {
    let line = machine.property("/machine", "append");
    line.as_str().unwrap().split(' ').map(str::to_owned).collect()
}

#[tokio::test]
async fn a3_a26_the_kernel_starts_from_its_files_and_the_operator_s_words_come_last() {
    let fixture = Fixture::new();
    let Boot::Initrd(initrd) = fixture.spec.boot.clone() else { panic!("no initrd") };
    let kernel = fixture.spec.kernel.clone();
    let mut machine = Machine::boot(fixture).await;
    assert_eq!(machine.property("/machine", "kernel"), kernel.to_str().unwrap());
    assert_eq!(machine.property("/machine", "initrd"), initrd.to_str().unwrap());
    let words = words(&mut machine);
    for word in ["tsc=reliable", "console=ttyS0", "debug", "panic=1", "nr_cpus=2", "scsi_mod.scan=none"] {
        assert!(words.iter().any(|found| found == word), "{word}: {words:?}");
    }
    assert_eq!(words.last().unwrap(), "vmm.test=1");
    assert!(!words.iter().any(|word| word.starts_with("root=")), "{words:?}");
    machine.end().await;
}

#[tokio::test]
async fn a3_a4_an_image_is_the_root_of_a_guest_that_says_little() {
    let mut fixture = Fixture::new();
    let path = fixture.dir.path().join("image");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    fixture.spec.boot = Boot::Image { path, fs: ImageFs::Xfs, driver: ImageDriver::Nvdimm, verity: None };
    (fixture.spec.debug, fixture.spec.console) = (false, Console::Virtio);
    let mut machine = Machine::boot(fixture).await;
    assert_eq!(machine.property("/machine", "initrd"), "");
    let words = words(&mut machine);
    for word in [
        "root=/dev/pmem0p1",
        "rootflags=dax",
        "rootfstype=xfs",
        "ro",
        "console=hvc0",
        "quiet",
        "systemd.unit=kata-containers.target",
    ] {
        assert!(words.iter().any(|found| found == word), "{word}: {words:?}");
    }
    machine.end().await;
}
