//! Devices of the host, as a container in the guest has them. Hosts of tests have none to give away: a disk of QEMU's takes
//! the place of one, behind an IOMMU of QEMU's, and the guest's side is the same.

use std::time::Duration;

use agent_client::agent::{CreateContainerRequest, Device};
use agent_protocol::convert::spec_to_wire;
use serde_json::json;
use tests::bundle::spec;
use tests::case::PATIENCE;
use tests::machine::{Machine, ROOTFS};
use tests::{Case, Failure, Result, check, check_eq};
use vmm::VmSpec;
use vmm::plug::DiskBus;
use vmm::spec::{PciPlaces, Window};

use crate::listed;
use crate::plug::{disk_of, image, with_machine};

listed!(
    all: [],
    ours: [
        d17_a_container_has_a_device_of_the_host_by_the_guests_driver_and_by_vfio,
    ]
);

/// The address that the host has it by.
const HOST: &str = "0000:3b:00.0";

/// What the shim writes when a network interface's device is given back to its driver, in a kernel where that can be tried.
const GIVEN_BACK: &str = "mount -o remount,rw /sys; cd /sys/bus/pci; device=0000:01:01.0; \
                          printf '\\n' >devices/$device/driver_override; \
                          printf $device >devices/$device/driver/unbind; printf $device >drivers/virtio-pci/bind; \
                          echo $(cat devices/$device/driver_override) $(basename $(readlink devices/$device/driver))";

fn with_iommu(spec: &mut VmSpec) -> Result<()> {
    spec.iommu = true;
    spec.pci = PciPlaces::new(1, 0, Window::default())?;
    Ok(())
}

fn d17_a_container_has_a_device_of_the_host_by_the_guests_driver_and_by_vfio(case: &Case<'_>) -> Result<()> {
    with_machine(case, with_iommu, |case, machine| async move {
        let result = tokio::time::timeout(PATIENCE, both(case, &machine)).await;
        (machine, result.unwrap_or_else(|_| Err(Failure::new("not done in time"))))
    })
}

async fn both(case: &Case<'_>, machine: &Machine) -> Result<()> {
    let plugged = machine.vm.plug(disk_of(&image(case)?, DiskBus::VirtioBlk)).await?;
    check_eq!(plugged.at.to_string(), "02/01", "the place");
    check_eq!(
        with_device(case, machine, "driver", "vfio-pci-gk").await?,
        "0000:01:01.0\nls: /dev/vfio: No such file or directory",
        "what the container has"
    );
    check_eq!(driver(case, machine).await?, "virtio-pci", "whose it is after that");
    let seen = with_device(case, machine, "container", "vfio-pci").await?;
    let (address, files) = seen.split_once('\n').unwrap_or_default();
    check_eq!(address, "0000:01:01.0", "the address in the environment");
    let numbers: Vec<&str> = files.split_whitespace().filter(|file| file.parse::<u32>().is_ok()).collect();
    check!(numbers.len() == 1 && files.ends_with("opened"), "{files:?} is not the file of a group, opened");
    check_eq!(driver(case, machine).await?, "vfio-pci", "whose it is then");
    check_eq!(machine.sh(case, GIVEN_BACK).await?, "(null) virtio-pci", "whose it is when it is given back");
    machine.vm.unplug(&plugged.id).await?;
    check_eq!(
        machine.sh(case, "ls /sys/bus/pci/devices/0000:00:02.0 | grep -c ^0000 || true").await?,
        "0",
        "devices left"
    );
    Ok(())
}

async fn driver(case: &Case<'_>, machine: &Machine) -> Result<String> {
    machine.sh(case, "basename $(readlink /sys/bus/pci/devices/0000:01:01.0/driver)").await
}

/// What a container says that is given the device as `kind`.
async fn with_device(case: &Case<'_>, machine: &Machine, id: &str, kind: &str) -> Result<String> {
    let script = "echo $PCIDEVICE_EXAMPLE_COM_NIC; ls /dev/vfio 2>&1; for file in /dev/vfio/[0-9]*; do \
                  [ ! -e $file ] || (exec 3<>$file && echo opened); done";
    let mut spec = spec(case.world, &case.namespace, id, &["sh", "-c", script]);
    spec["root"] = json!({"path": ROOTFS, "readonly": true});
    spec["process"]["env"] = json!(["PATH=/bin", format!("PCIDEVICE_EXAMPLE_COM_NIC={HOST}")]);
    spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    if kind == "vfio-pci" {
        let file = |path, major, minor| json!({"path": path, "type": "c", "major": major, "minor": minor});
        let rule = |major, minor| json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rw"});
        spec["linux"]["devices"] = json!([file("/dev/vfio/7", 240, 0), file("/dev/vfio/vfio", 10, 196)]);
        let none = json!({"allow": false, "access": "rwm"});
        spec["linux"]["resources"] = json!({"devices": [none, rule(240, 0), rule(10, 196)]});
    }
    let device = Device {
        id: "7".into(),
        type_: kind.into(),
        container_path: "/dev/vfio/7".into(),
        options: vec![format!("{HOST}=02/01")],
        ..Device::default()
    };
    let request = CreateContainerRequest {
        container_id: id.into(),
        devices: vec![device],
        oci: Some(spec_to_wire(&serde_json::from_value(spec)?)).into(),
        ..CreateContainerRequest::default()
    };
    machine.agent.create_container(request).await?;
    machine.agent.start_container(id).await?;
    let said = machine.output_of(id).await?;
    machine.agent.wait_process(id, "").await?;
    machine.agent.remove_container(id, Duration::ZERO).await?;
    Ok(said)
}
