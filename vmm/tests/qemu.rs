//! Whole machines: the real QEMU, the real helpers, a real kernel, under TCG.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod common;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Fixture, boot, log, named, status};
use vmm::accelerator::Accelerator;
use vmm::spec::{Boot, Firmware, ImageDriver, ImageFs, ShareKind, Vcpus};
use vmm::{BootError, How, Hypervisor, Qemu, Unwell, Vm, VmExit, Who};

async fn refused(fixture: &Fixture) -> BootError {
    Qemu::new(log()).boot(fixture.spec.clone()).await.err().expect("such a machine does not boot")
}

async fn ended(vm: &dyn Vm, within: Duration) -> VmExit {
    let mut exit = vm.exit();
    let exit =
        tokio::time::timeout(within, exit.wait_for(Option::is_some)).await.expect("nothing ended in time");
    exit.unwrap().clone().unwrap()
}

/// A file that runs and says something before it ends.
fn script(fixture: &Fixture, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = fixture.dir.path().join("script");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn b1_b3_a43_a_machine_boots_is_paused_resumed_and_stopped_by_itself_once() {
    let fixture = Fixture::new();
    let vm = boot(&fixture).await;
    assert_eq!(vm.processes()[0].pid, vm.pid());
    vm.pause().await.unwrap();
    vm.resume().await.unwrap();
    assert!(vm.exit().borrow().is_none());
    vm.stop(Duration::from_secs(8)).await.unwrap();
    let exit = vm.exit().borrow().clone().unwrap();
    assert_eq!((exit.who, exit.how), (Who::Qemu, How::Exited(0)));
    vm.stop(Duration::from_secs(8)).await.unwrap();
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn b19_b20_a_machine_tells_that_it_is_well_and_which_threads_its_processors_are() {
    let mut fixture = Fixture::new();
    fixture.spec.vcpus = Vcpus::new(2, 2).unwrap();
    let vm = boot(&fixture).await;
    vm.check().await.unwrap();
    let threads = vm.vcpu_threads().await.unwrap();
    assert_eq!(threads.iter().map(|thread| thread.vcpu).collect::<Vec<_>>(), [0, 1]);
    for thread in &threads {
        let name = format!("/proc/{}/task/{}/comm", vm.pid(), thread.tid);
        assert!(std::fs::exists(&name).unwrap(), "{name}");
    }
    let is_shared = threads[0].tid == threads[1].tid;
    assert_eq!(is_shared, fixture.spec.accelerator == Accelerator::Tcg, "{threads:?}");
    vm.pause().await.unwrap();
    vm.check().await.unwrap();
    assert!(named(&vm.processes(), "qemu").kill().unwrap());
    ended(vm.as_ref(), Duration::from_secs(1)).await;
    assert!(matches!(vm.check().await, Err(Unwell::Qmp(_))));
    vm.stop(Duration::ZERO).await.unwrap();
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn a_stop_without_grace_takes_no_time() {
    let fixture = Fixture::new().with_virtiofs();
    let vm = boot(&fixture).await;
    assert_eq!(vm.processes().len(), 2);
    let start = Instant::now();
    vm.stop(Duration::ZERO).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn a_qemu_that_does_not_listen_is_killed_when_its_grace_is_over() {
    let fixture = Fixture::new();
    let vm = boot(&fixture).await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(vm.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let start = Instant::now();
    vm.stop(Duration::from_secs(1)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn r07_a_kernel_panic_ends_the_machine_and_is_in_the_consoles_tail() {
    let fixture = Fixture::new();
    let vm = boot(&fixture).await;
    let exit = ended(vm.as_ref(), Duration::from_secs(120)).await;
    assert_eq!((exit.who, exit.how), (Who::Qemu, How::Exited(0)));
    let tail = vm.console_tail();
    assert!(tail.contains("Kernel panic"), "{tail}");
    vm.stop(Duration::ZERO).await.unwrap();
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn a_disk_image_is_a_disk_the_guest_reads() {
    let mut fixture = Fixture::new();
    let path = fixture.dir.path().join("image,with=odd\"name");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    fixture.spec.boot = Boot::Image { path, fs: ImageFs::Ext4, driver: ImageDriver::VirtioBlk, verity: None };
    let vm = boot(&fixture).await;
    vm.stop(Duration::from_secs(4)).await.unwrap();
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn r02_a_killed_qemu_is_an_event() {
    let fixture = Fixture::new();
    let vm = boot(&fixture).await;
    assert!(named(&vm.processes(), "qemu").kill().unwrap());
    let exit = ended(vm.as_ref(), Duration::from_secs(1)).await;
    assert_eq!((exit.who, exit.how), (Who::Qemu, How::Killed(9)));
    assert!(vm.pause().await.is_err());
    drop(vm);
    tokio::time::sleep(Duration::from_millis(100)).await;
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn b1_a_stop_ends_the_daemon_of_a_qemu_that_is_dead_already() {
    let fixture = Fixture::new().with_virtiofs();
    let vm = boot(&fixture).await;
    let processes = vm.processes();
    assert!(named(&processes, "qemu").kill().unwrap());
    assert_eq!(ended(vm.as_ref(), Duration::from_secs(1)).await.who, Who::Qemu);
    vm.stop(Duration::from_secs(1)).await.unwrap();
    assert!(!named(&processes, "virtiofsd").is_there());
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn a37_r08_a_killed_virtiofsd_is_an_event() {
    let fixture = Fixture::new().with_virtiofs();
    let vm = boot(&fixture).await;
    assert!(named(&vm.processes(), "virtiofsd").kill().unwrap());
    let exit = ended(vm.as_ref(), Duration::from_secs(1)).await;
    assert_eq!((exit.who, exit.how), (Who::Virtiofsd, How::Killed(9)));
    vm.stop(Duration::ZERO).await.unwrap();
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn whoever_waits_for_a_guest_learns_that_its_machine_is_gone() {
    let fixture = Fixture::new();
    let vm = boot(&fixture).await;
    let vsock = vm.vsock();
    let mut listener = vsock.listen(1025).unwrap();
    // This guest has no driver for its vsock, so it never answers.
    let waiting = tokio::spawn({
        let vsock = vsock.clone();
        async move { vsock.connect(1024).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    vm.stop(Duration::ZERO).await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(1), waiting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotConnected | ErrorKind::ConnectionRefused), "{error}");
    assert!(listener.recv().await.is_none());
    assert_eq!(vsock.connect(1024).await.unwrap_err().kind(), ErrorKind::NotConnected);
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn b2_a_boot_that_is_dropped_leaves_nothing_whenever_that_is() {
    for wait in [0, 1, 3, 10, 30, 60, 100, 200] {
        let fixture = Fixture::new().with_virtiofs();
        let qemu = Qemu::new(log());
        let boot = qemu.boot(fixture.spec.clone());
        let _ = tokio::time::timeout(Duration::from_millis(wait), boot).await.map(drop);
        // The runtime reaps what was killed.
        tokio::time::sleep(Duration::from_millis(300)).await;
        fixture.assert_nothing_left();
    }
}

#[tokio::test]
async fn r01_a_qemu_that_exits_at_once_is_quoted() {
    let mut fixture = Fixture::new();
    fixture.spec.qemu = script(&fixture, "echo first; echo 'no such machine' >&2; exit 3");
    let start = Instant::now();
    let error = refused(&fixture).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let text = error.to_string();
    assert!(text.ends_with("qemu ended with status 3: first | no such machine"), "{text}");
    fixture.assert_nothing_left();
}

/// Speaks QMP as a QEMU of release 5 does.
const OLD: &str = r#"exec bash -c '
for word; do case $word in socket,id=qmp0,fd=*) monitor=${word##*=};; esac; done
echo "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 9, \"minor\": 2, \"major\": 5}, \"package\": \"\"}, \"capabilities\": []}}" >&$monitor
read -r line <&$monitor
id=${line##*\"id\":}
echo "{\"return\": {}, \"id\": ${id%%[,\}]*}}" >&$monitor
exec sleep 60' "$0" "$@""#;

#[tokio::test]
async fn a42_a_qemu_that_is_too_old_is_told_by_its_version() {
    let mut fixture = Fixture::new();
    fixture.spec.qemu = script(&fixture, OLD);
    let error = refused(&fixture).await;
    assert!(matches!(&error, BootError::TooOld { found, .. } if found == "5.2.9"), "{error}");
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn r01_what_the_real_qemu_dislikes_is_quoted() {
    let mut fixture = Fixture::new();
    std::fs::write(fixture.dir.path().join("firmware"), [0; 100]).unwrap();
    fixture.spec.firmware = Firmware::Bios(fixture.dir.path().join("firmware"));
    let text = refused(&fixture).await.to_string();
    assert!(text.contains("could not load PC BIOS"), "{text}");
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn a_helper_that_does_not_come_up_is_quoted() {
    let mut fixture = Fixture::new().with_virtiofs();
    let program = script(&fixture, "echo 'cannot do that' >&2; exit 1");
    let Some(ShareKind::VirtioFs(fs)) = fixture.spec.share.as_mut().map(|share| &mut share.kind) else {
        panic!("asked for virtio-fs");
    };
    fs.daemon = program;
    let text = refused(&fixture).await.to_string();
    assert!(text.ends_with("virtiofsd ended with status 1: cannot do that"), "{text}");
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn a_file_that_will_not_do_is_named_before_anything_starts() {
    let mut fixture = Fixture::new();
    fixture.spec.kernel = "/nowhere/vmlinuz".into();
    assert_eq!(refused(&fixture).await.to_string(), "kernel /nowhere/vmlinuz: missing");
    let mut fixture = Fixture::new();
    fixture.spec.qemu = "/etc/passwd".into();
    assert_eq!(refused(&fixture).await.to_string(), "QEMU /etc/passwd: not executable");
    let mut fixture = Fixture::new();
    let file = fixture.dir.path().join("no-program");
    std::fs::write(&file, "#!/nowhere/interpreter\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fixture.spec.qemu = file;
    assert!(matches!(refused(&fixture).await, BootError::Spawn { who: Who::Qemu, .. }));
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn s_d1_s_a7_every_process_is_confined() {
    let fixture = Fixture::new().with_virtiofs();
    let vm = boot(&fixture).await;
    for process in vm.processes() {
        assert_eq!(status(process.pid, "NoNewPrivs"), "1", "{process}");
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid)).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{process}");
    }
    assert_eq!(status(vm.pid(), "Seccomp"), "2");
    let worker = child_of(named(&vm.processes(), "virtiofsd").pid);
    assert_eq!(status(worker, "NoNewPrivs"), "1");
    assert_eq!(status(worker, "Seccomp"), "2");
    assert_ne!(status(worker, "CapEff"), status(std::process::id(), "CapEff"));
    vm.stop(Duration::ZERO).await.unwrap();
    fixture.assert_nothing_left();
    let state = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap_or_default();
    assert!(state.is_empty() || state.contains("State:\tZ"), "the worker outlived the daemon: {state}");
}

fn child_of(pid: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn s_d2_every_process_has_the_descriptors_it_was_given_and_its_own() {
    let canary = std::fs::File::open("/etc/hostname").unwrap();
    nix::fcntl::fcntl(&canary, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let fixture = Fixture::new().with_virtiofs();
    let vm = boot(&fixture).await;
    for process in vm.processes() {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap().flatten();
        let targets: Vec<_> = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
        assert!(
            !targets.iter().any(|target| target == std::path::Path::new("/etc/hostname")),
            "{process}: {targets:?}"
        );
    }
    vm.stop(Duration::ZERO).await.unwrap();
    fixture.assert_nothing_left();
}
