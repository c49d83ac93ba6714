//! Devices of the host that containers are given by VFIO.

use std::fs;

use containerd_shim_protos::{api::CreateTaskRequest, ttrpc::Code};
use serde_json::{Value, json};

use crate::fakes::{Host, Shim, code, on_fakes, words};

const HOT: &str = "pcie_root_port = 2\nhot_plug_vfio = 'root-port'";
const COLD: &str = "pcie_root_port = 2\ncold_plug_vfio = 'root-port'";
const ENDPOINT: &str = "0x020000";
const BRIDGE: &str = "0x060400";

/// A group of two functions behind a bridge, and one of a device that is called by its own file as well.
fn host() -> Host {
    let host = Host::new();
    host.pci("0000:00:01.0", 7, "pcieport", BRIDGE);
    host.pci("0000:01:00.0", 7, "vfio-pci", ENDPOINT);
    host.pci("0000:01:00.1", 7, "vfio-pci", ENDPOINT);
    host.pci("0000:02:00.0", 8, "vfio-pci", ENDPOINT);
    host.file("240:0", "vfio/7");
    host.file("240:1", "vfio/8");
    host.file("241:0", "vfio/devices/vfio0");
    host.file("10:196", "vfio/vfio");
    fs::create_dir_all("/sys/class/vfio-dev/vfio0").unwrap();
    std::os::unix::fs::symlink("/sys/bus/pci/devices/0000:02:00.0", "/sys/class/vfio-dev/vfio0/device")
        .unwrap();
    host
}

/// A container with these files, each by its numbers.
fn with(shim: &Shim, request: CreateTaskRequest, files: &[(&str, i64, i64)]) -> CreateTaskRequest {
    let file = shim.dir.path().join(&request.id).join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let device = |(path, major, minor): &(&str, i64, i64)| json!({"path": path, "type": "c", "major": major, "minor": minor});
    let rule = |(_, major, minor): &(&str, i64, i64)| json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rw"});
    spec["linux"]["devices"] = files.iter().map(device).collect();
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    rules.extend(files.iter().map(rule));
    spec["linux"]["resources"] = json!({"devices": rules});
    fs::write(&file, spec.to_string()).unwrap();
    request
}

async fn pod(shim: &Shim) {
    let pod = shim.request_with("pod", json!({"io.kubernetes.cri.container-type": "sandbox"}));
    shim.create_as(pod).await.unwrap();
    assert_eq!(shim.published(1).await, ["create pod"]);
}

#[test]
fn d17_a_groups_endpoints_are_plugged_in_told_and_taken_out_with_the_last_container_that_has_them() {
    on_fakes(async |shim| {
        let _host = host();
        shim.configure(HOT);
        pod(shim).await;
        for id in ["one", "two"] {
            let request = with(
                shim,
                shim.request_in("pod", id),
                &[("/dev/vfio/7", 240, 0), ("/dev/vfio/vfio", 10, 196)],
            );
            shim.create_as(request).await.unwrap();
            let options = r#"["0000:01:00.0=07/00", "0000:01:00.1=08/00"]"#;
            let told = format!("Device {id} /dev/vfio/7 vfio-pci-gk 7 {options}");
            assert_eq!(shim.guest.noted(&format!("Device {id}")), [told]);
            assert_eq!(shim.guest.noted(&format!("DeviceFiles {id}")), [format!("DeviceFiles {id}  0")]);
            assert_eq!(shim.published(1).await, [format!("create {id}")]);
        }
        let both = ["0000:01:00.0 07/00", "0000:01:00.1 08/00"];
        shim.machine.has_host_devices(&both).await;
        shim.delete("one").await.unwrap();
        shim.machine.has_host_devices(&both).await;
        shim.delete("two").await.unwrap();
        shim.machine.has_host_devices(&[]).await;
        let events = shim.published(4).await;
        assert_eq!(events, ["exit one 137", "delete one 137", "exit two 137", "delete two 137"]);
    });
}

#[test]
fn d17_by_vfio_in_the_guest_a_container_has_the_files_as_well() {
    on_fakes(async |shim| {
        let _host = host();
        shim.configure(&format!("{HOT}\nenable_iommu = true\n[runtime]\nvfio_mode = 'vfio'"));
        let files = [("/dev/vfio/devices/vfio0", 241, 0), ("/dev/vfio/vfio", 10, 196), ("/dev/null", 1, 3)];
        shim.create_as(with(shim, shim.request("c1"), &files)).await.unwrap();
        let told = "Device c1 /dev/vfio/devices/vfio0 vfio-pci vfio0 [\"0000:02:00.0=07/00\"]";
        assert_eq!(shim.guest.noted("Device "), [told]);
        assert_eq!(
            shim.guest.noted("DeviceFiles"),
            ["DeviceFiles c1 /dev/vfio/devices/vfio0 /dev/vfio/vfio 2"]
        );
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

#[test]
fn d17_with_cold_plug_the_machine_has_the_devices_of_its_first_container_from_the_start() {
    on_fakes(async |shim| {
        let _host = host();
        shim.configure(COLD);
        let files = [("/dev/vfio/8", 240, 1), ("/dev/vfio/devices/vfio0", 241, 0)];
        shim.create_as(with(shim, shim.request("c1"), &files)).await.unwrap();
        shim.machine.has_host_devices(&["0000:02:00.0 07/00"]).await;
        let [group, alone] = &shim.guest.noted("Device ")[..] else { panic!() };
        assert_eq!(group, "Device c1 /dev/vfio/8 vfio-pci-gk 8 [\"0000:02:00.0=07/00\"]");
        assert!(alone.ends_with("vfio0 [\"0000:02:00.0=07/00\"]"), "{alone}");
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

#[test]
fn d17_what_a_container_does_not_get_as_a_whole_it_does_not_get_in_part() {
    on_fakes(async |shim| {
        let host = host();
        host.pci("0000:01:00.2", 7, "vfio-pci", ENDPOINT);
        shim.configure(HOT);
        pod(shim).await;
        let create = |id: &'static str, files: &[(&str, i64, i64)]| {
            shim.creating(with(shim, shim.request_in("pod", id), files))
        };
        let refused = words(create("one", &[("/dev/vfio/7", 240, 0)]).await.unwrap());
        assert!(
            refused.starts_with("device /dev/vfio/7 (0000:01:00.2): the machine has no free room"),
            "{refused}"
        );
        shim.machine.has_host_devices(&[]).await;
        // What the guest refuses is taken back, too.
        shim.guest.refuses("CreateContainer", Code::INTERNAL, "no");
        create("two", &[("/dev/vfio/8", 240, 1)]).await.unwrap().unwrap_err();
        shim.machine.has_host_devices(&[]).await;
        shim.guest.obeys();
    });
}

#[test]
fn d17_what_is_not_for_a_guest_is_refused_by_name() {
    on_fakes(async |shim| {
        let host = host();
        host.pci("0000:03:00.0", 9, "ixgbe", ENDPOINT);
        host.matrix("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", 10);
        host.file("240:2", "vfio/9");
        host.file("240:3", "vfio/10");
        shim.configure(HOT);
        for (files, why) in [
            (
                ("/dev/vfio/9", 240, 2),
                "device /dev/vfio/9 (240:2): 0000:03:00.0, which the guest is to have, is driven by ixgbe",
            ),
            (("/dev/vfio/10", 240, 3), "fa1001 is on no PCI bus"),
            (("/dev/vfio/11", 240, 4), "device /dev/vfio/11 (240:4): the host has no such device of VFIO's"),
        ] {
            let answer = shim.create_as(with(shim, shim.request("c1"), &[files])).await;
            assert_eq!(code(answer.clone()), Code::INVALID_ARGUMENT);
            assert!(words(answer.clone()).contains(why), "{}", words(answer));
            assert!(shim.nothing_is_left());
        }
        // A privileged container has a rule about all devices and none about one.
        let request = with(shim, shim.request("c1"), &[("/dev/vfio/9", 240, 2)]);
        let file = shim.dir.path().join("c1/config.json");
        let text = fs::read_to_string(&file).unwrap();
        let all = text.replace(r#""major":240,"minor":2,"type":"c"}]}"#, r#""type":"a"}]}"#);
        assert_ne!(text, all);
        fs::write(&file, all).unwrap();
        shim.create_as(request).await.unwrap();
        assert_eq!(
            (shim.guest.noted("Device "), shim.published(1).await),
            (vec![], vec!["create c1".to_owned()])
        );
    });
}
