//! A share that nydusd serves. What runs in its place is a script; its sockets are the test's, behind QEMU's one of
//! them is a real virtiofsd.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod common;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Fixture, log, named, virtiofsd};
use vmm::spec::{ExtraArgs, FsServer, ShareKind};
use vmm::{BootError, How, Hypervisor, NydusdError, Qemu, Who};

const RUNNING: &str = "HTTP/1.1 200 \r\nContent-Length: 19\r\n\r\n{\"state\":\"RUNNING\"}";
const DONE: &str = "HTTP/1.1 204 \r\n\r\n";

/// A machine whose share is served by `script`.
fn machine(script: &str) -> Fixture {
    let mut fixture = Fixture::new().with_virtiofs();
    let program = fixture.dir.path().join("nydusd");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let Some(ShareKind::VirtioFs(fs)) = fixture.spec.share.as_mut().map(|share| &mut share.kind) else {
        panic!("asked for virtio-fs");
    };
    fs.daemon = program;
    fs.server = FsServer::Nydusd;
    fs.extra_args = ExtraArgs::of_nydusd(["--log-level=debug".to_owned()]).unwrap();
    fixture
}

/// What nydusd does where a script cannot.
struct Behind {
    run_dir: PathBuf,
    share: PathBuf,
    answers: &'static [&'static str],
}

impl Behind {
    fn of(fixture: &Fixture, answers: &'static [&'static str]) -> Behind {
        let share = fixture.spec.share.as_ref().unwrap().source.clone();
        Behind { run_dir: fixture.spec.run_dir.clone(), share, answers }
    }

    /// Comes up once the script runs; gives the requests it got and the daemon behind QEMU's socket.
    fn serve(self) -> JoinHandle<(Vec<String>, Child)> {
        thread::spawn(move || {
            until_there(&self.run_dir.join("arguments"));
            std::fs::remove_file(self.run_dir.join("arguments")).unwrap();
            let daemon = serve_files(&self.run_dir.join("nydusd.sock"), &self.share);
            let api = UnixListener::bind(self.run_dir.join("nydusd-api.sock")).unwrap();
            let requests = self.answers.iter().map(|answer| {
                let (mut stream, _) = api.accept().unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8(request[..length].to_vec()).unwrap()
            });
            (requests.collect(), daemon)
        })
    }
}

fn until_there(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} does not come", path.display());
        thread::sleep(Duration::from_millis(5));
    }
}

/// virtiofsd on a socket at `path`; it ends with its first connection.
fn serve_files(path: &Path, share: &Path) -> Child {
    let listener = OwnedFd::from(UnixListener::bind(path).unwrap());
    // SAFETY: a system call on an open descriptor; the copy is the result's.
    let inherited = unsafe { OwnedFd::from_raw_fd(libc::dup(listener.as_raw_fd())) };
    let fd = inherited.as_raw_fd();
    let mut command = Command::new(virtiofsd());
    command
        .arg(format!("--fd={fd}"))
        .arg("--shared-dir")
        .arg(share)
        .arg("--cache=always")
        .arg("--sandbox=none");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec, a system call on a number.
    unsafe {
        command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command.spawn().unwrap()
}

/// Tells its arguments, whole, and stays.
const STAYS: &str = "echo \"$@\" > ../told; echo > arguments; exec sleep 600";

async fn refused(fixture: &Fixture) -> BootError {
    Qemu::new(log()).boot(fixture.spec.clone()).await.err().expect("such a machine does not boot")
}

#[tokio::test]
async fn a36_qemu_boots_with_a_share_that_nydusd_serves_and_its_death_is_an_event() {
    let fixture = machine(STAYS);
    let serving = Behind::of(&fixture, &[RUNNING, DONE]).serve();
    let vm = Qemu::new(log()).boot(fixture.spec.clone()).await.unwrap();
    let (requests, mut daemon) = serving.join().unwrap();
    let told = std::fs::read_to_string(fixture.dir.path().join("told")).unwrap();
    assert_eq!(
        told,
        "virtiofs --hybrid-mode --sock nydusd.sock --apisock nydusd-api.sock --log-level=debug\n"
    );
    assert!(requests[0].starts_with("GET /api/v1/daemon "), "{}", requests[0]);
    assert!(requests[1].starts_with("POST /api/v1/mount?mountpoint=/containers "), "{}", requests[1]);
    let source = fixture.spec.share.as_ref().unwrap().source.to_str().unwrap();
    assert!(requests[1].contains(&format!("\"source\":\"{source}\"")), "{}", requests[1]);
    for socket in ["nydusd.sock", "nydusd-api.sock"] {
        assert!(!fixture.spec.run_dir.join(socket).exists(), "somebody else can still connect to {socket}");
    }
    assert!(named(&vm.processes(), "nydusd").kill().unwrap());
    let mut exit = vm.exit();
    let exit = tokio::time::timeout(Duration::from_secs(5), exit.wait_for(Option::is_some)).await.unwrap();
    let exit = exit.unwrap().clone().unwrap();
    assert_eq!((exit.who, exit.how), (Who::Nydusd, How::Killed(9)));
    vm.stop(Duration::ZERO).await.unwrap();
    fixture.assert_nothing_left();
    // Its connection was QEMU's, and goes with it.
    daemon.wait().unwrap();
}

#[tokio::test]
async fn a36_a_nydusd_that_refuses_or_talks_nonsense_leaves_nothing() {
    let refusal = "HTTP/1.1 500 \r\nContent-Length: 17\r\n\r\n{\"message\":\"bad\"}";
    let cases: [&'static [&'static str]; 2] =
        [Box::leak(Box::new([RUNNING, refusal])), Box::leak(Box::new(["220 ready\r\n"]))];
    for answers in cases {
        let fixture = machine(STAYS);
        let serving = Behind::of(&fixture, answers).serve();
        let error = refused(&fixture).await;
        let (_, mut daemon) = serving.join().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let text = error.to_string();
        match error {
            BootError::Nydusd(NydusdError::Refused { status: 500, words, .. }) => assert_eq!(words, "bad"),
            BootError::Nydusd(NydusdError::Protocol { .. }) => assert_eq!(answers.len(), 1, "{text}"),
            _ => panic!("{text}"),
        }
        fixture.assert_nothing_left();
    }
}

#[tokio::test]
async fn a36_a_nydusd_that_ends_at_once_is_quoted() {
    let fixture = machine("echo 'unknown argument' >&2; exit 2");
    let text = refused(&fixture).await.to_string();
    assert!(text.ends_with("nydusd ended with status 2: unknown argument"), "{text}");
    fixture.assert_nothing_left();
}

#[tokio::test]
async fn a36_a_boot_that_is_dropped_while_nydusd_hangs_leaves_nothing() {
    let fixture = machine("exec sleep 600");
    let qemu = Qemu::new(log());
    let boot = qemu.boot(fixture.spec.clone());
    assert!(tokio::time::timeout(Duration::from_millis(200), boot).await.is_err(), "nobody answered");
    // The runtime reaps what was killed.
    tokio::time::sleep(Duration::from_millis(300)).await;
    fixture.assert_nothing_left();
}
