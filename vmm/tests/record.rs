//! What becomes of a machine whose program is killed: by the kernel, or by whoever reads the record.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Fixture, log};
use vmm::{Hypervisor, Process, Qemu, Record, sweep};

/// What has the test of this name boot a machine, and how.
const FIRST: &str = "VMM_TEST_FIRST_PROCESS";
/// What comes before its run directory.
const RUNS: &str = "runs in ";

/// Not a test but the program that is killed, in a process of its own.
#[tokio::test]
async fn the_first_process() {
    let Some(kind) = std::env::var_os(FIRST) else { return };
    let mut fixture = Fixture::new();
    if kind == "rootless" {
        fixture = fixture.with_virtiofs().rootless();
    } else {
        // A machine that the kernel does not end with its program.
        let (path, qemu) = (fixture.dir.path().join("survivor"), fixture.spec.qemu.display().to_string());
        std::fs::write(&path, format!("#!/bin/sh\nexec setpriv --pdeathsig clear {qemu} \"$@\"\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        fixture.spec.qemu = path;
    }
    let _vm = Qemu::new(log()).boot(fixture.spec.clone()).await.unwrap();
    println!("{RUNS}{}", fixture.spec.run_dir.display());
    std::future::pending::<()>().await;
}

struct First(Child);

impl First {
    /// Also returns the machine's run directory.
    fn start(kind: &str, dir: &Path) -> (First, PathBuf) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_first_process", "--nocapture"]).env(FIRST, kind).env("TMPDIR", dir);
        let mut child = First(command.stdout(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let run_dir =
            lines.map_while(Result::ok).find_map(|line| Some(PathBuf::from(line.split_once(RUNS)?.1)));
        (child, run_dir.unwrap())
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether it still does something: who is to reap it, now that its parent is gone, may take its time.
fn lives(process: &Process) -> bool {
    process.is_there() && std::fs::read_link(format!("/proc/{}/exe", process.pid)).is_ok()
}

fn assert_gone(processes: &[Process]) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while processes.iter().any(lives) {
        assert!(Instant::now() < deadline, "still there: {processes:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn b21_a_later_process_stops_a_machine_by_its_record_after_the_first_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (first, run_dir) = First::start("survivor", dir.path());
    drop(first);
    let record = Record::read(&run_dir).unwrap().unwrap();
    let machine = record.machine.unwrap();
    assert_eq!((machine.version, machine.name.as_str(), machine.cid), (1, "test", None));
    assert_eq!(record.processes.len(), 1);
    let qemu = &record.processes[0];
    assert!(lives(qemu), "it was to survive");
    let command = std::fs::read(format!("/proc/{}/cmdline", qemu.pid)).unwrap();
    assert!(command.windows(machine.uuid.len()).any(|words| words == machine.uuid.as_bytes()));
    assert_eq!(sweep(&run_dir).unwrap(), record.processes);
    assert_gone(&record.processes);
}

#[test]
fn a33_the_kernel_ends_a_rootless_machine_with_its_program() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (first, run_dir) = First::start("rootless", dir.path());
    let record = Record::read(&run_dir).unwrap().unwrap();
    assert_eq!(record.processes.len(), 2);
    assert!(record.processes.iter().all(lives));
    drop(first);
    assert_gone(&record.processes);
}
