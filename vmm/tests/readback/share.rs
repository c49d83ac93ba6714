//! Directories and sockets that the guest shares with the host.

use std::time::Duration;

use serde_json::json;
use vmm::spec::{ExtraArgs, FsCache, FsServer, ShareKind};
use vmm::{Hypervisor, Qemu};

use crate::Machine;
use crate::common::{Fixture, log, named};

const DEVICE: &str = "/machine/peripheral/fs0";

#[tokio::test]
async fn b18_a_directory_by_9p_is_under_its_tag() {
    let mut machine = Machine::boot(Fixture::new()).await;
    assert_eq!(machine.property(DEVICE, "type"), "virtio-9p-pci");
    assert_eq!(machine.property(DEVICE, "mount_tag"), "kataShared");
    assert_eq!(machine.property(DEVICE, "fsdev"), "fsdev0");
    machine.end().await;
}

#[tokio::test]
async fn a36_b18_a_directory_by_virtio_fs_is_under_its_tag_and_the_daemon_is_told_what_the_operator_wants() {
    let mut fixture = Fixture::new().with_virtiofs();
    let share = fixture.spec.share.as_mut().unwrap();
    let ShareKind::VirtioFs(fs) = &mut share.kind else { panic!("asked for virtio-fs") };
    (fs.queue_size, fs.server) = (256, FsServer::Virtiofsd(FsCache::Always));
    fs.extra_args = ExtraArgs::new(["--thread-pool-size=2".to_owned()]).unwrap();
    let shared = format!("--shared-dir={}", share.source.display());
    let mut machine = Machine::boot(fixture).await;
    assert_eq!(machine.property(DEVICE, "type"), "vhost-user-fs-pci");
    assert_eq!(machine.property(DEVICE, "tag"), "kataShared");
    assert_eq!(machine.property(DEVICE, "queue-size"), 256);
    assert_eq!(machine.property(DEVICE, "chardev"), "charfs0");
    let daemon = named(&machine.vm.processes(), "virtiofsd").pid;
    let line = std::fs::read(format!("/proc/{daemon}/cmdline")).unwrap();
    let arguments: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    for argument in [&shared, "--cache=always", "--thread-pool-size=2", "--sandbox=namespace"] {
        assert!(arguments.iter().any(|found| found == argument), "{argument}: {arguments:?}");
    }
    machine.end().await;
}

/// No release of QEMU has it; a build that has shows the window instead.
#[tokio::test]
async fn b18_a_window_of_files_is_asked_of_qemu() {
    let mut fixture = Fixture::new().with_virtiofs();
    let share = fixture.spec.share.as_mut().unwrap();
    let ShareKind::VirtioFs(fs) = &mut share.kind else { panic!("asked for virtio-fs") };
    fs.dax_mib = 64;
    let refused = match Qemu::new(log()).boot(fixture.spec.clone()).await {
        Ok(vm) => {
            vm.stop(Duration::ZERO).await.unwrap();
            return;
        }
        Err(refused) => refused.to_string(),
    };
    assert!(refused.contains("cache-size"), "{refused}");
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn b18_b22_the_vsock_is_that_of_this_process_and_somebody_is_at_its_end() {
    let mut machine = Machine::boot(Fixture::new()).await;
    let vsock = "/machine/peripheral/vsock0";
    assert_eq!(machine.property(vsock, "type"), "vhost-user-vsock-pci");
    assert_eq!(machine.property(vsock, "chardev"), "charvsock0");
    let chardevs = machine.ask("query-chardev", json!({}));
    let of_vsock = chardevs.as_array().unwrap().iter().find(|one| one["label"] == "charvsock0").unwrap();
    assert!(of_vsock["filename"].as_str().unwrap().starts_with("unix:"), "{of_vsock}");
    machine.end().await;
}

#[tokio::test]
async fn a_machine_without_a_share_has_no_device_for_one() {
    let mut fixture = Fixture::new();
    fixture.spec.share = None;
    let mut machine = Machine::boot(fixture).await;
    let devices = machine.ask("qom-list", json!({"path": "/machine/peripheral"}));
    assert!(!devices.to_string().contains("\"fs0\""), "{devices}");
    machine.end().await;
}
