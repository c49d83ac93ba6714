//! The way to the agent, over real sockets.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use agent_client::{Endpoint, Error, Policy, ReadyListener, Timeouts, reach};
use support::Peer;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
    time::{Instant, sleep},
};

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(10);

fn policy() -> Policy {
    Policy { first: SHORT, between: SHORT, attempt: Duration::from_secs(2), timeouts: Timeouts::default() }
}

/// A vsock helper on a socket in a directory of its own. The first `deaf` connections are closed without
/// an answer, the others reach a healthy agent.
struct Helper {
    directory: TempDir,
    connections: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Helper {
    fn start(deaf: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock.sock")).unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let task = tokio::spawn(serve(listener, connections.clone(), deaf));
        Self { directory, connections, task }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix { path: self.directory.path().join("vsock.sock") }
    }

    fn notice(&self) -> PathBuf {
        self.directory.path().join("vsock.sock_1025")
    }

    fn connections(&self) -> u32 {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: UnixListener, connections: Arc<AtomicU32>, deaf: u32) {
    let mut open = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        if connections.fetch_add(1, Ordering::SeqCst) < deaf {
            continue;
        }
        let mut line = [0; b"CONNECT 1024\n".len()];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"CONNECT 1024\n");
        stream.write_all(b"OK 1073741824\n").await.unwrap();
        let mut peer = Peer { stream };
        peer.healthy().await;
        open.push(peer);
    }
}

#[tokio::test]
async fn an_agent_that_serves_is_reached_at_the_first_attempt() {
    let helper = Helper::start(0);
    reach(&helper.endpoint(), None, policy(), LONG).await.unwrap();
    assert_eq!(helper.connections(), 1);
}

#[tokio::test]
async fn every_attempt_is_a_fresh_connection() {
    let helper = Helper::start(3);
    reach(&helper.endpoint(), None, policy(), LONG).await.unwrap();
    assert_eq!(helper.connections(), 4);
}

#[tokio::test]
async fn nothing_is_tried_before_the_guests_notice() {
    let helper = Helper::start(0);
    let listener = ReadyListener::bind(&helper.notice()).unwrap();
    let endpoint = helper.endpoint();
    let reached = tokio::spawn(async move { reach(&endpoint, Some(listener), policy(), LONG).await });
    sleep(5 * SHORT).await;
    assert_eq!(helper.connections(), 0);
    drop(UnixStream::connect(helper.notice()).await.unwrap());
    reached.await.unwrap().unwrap();
    assert_eq!(helper.connections(), 1);
    assert!(!helper.notice().exists(), "the notice's socket outlived its use");
}

#[tokio::test]
async fn a_guest_that_gives_no_notice_is_reported_at_the_deadline() {
    let helper = Helper::start(0);
    let listener = ReadyListener::bind(&helper.notice()).unwrap();
    let begun = Instant::now();
    let within = Duration::from_millis(200);
    let error = reach(&helper.endpoint(), Some(listener), policy(), within).await.unwrap_err();
    assert!(begun.elapsed() >= within && begun.elapsed() < within + Duration::from_secs(1));
    assert!(matches!(error, Error::NoNotice { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("200ms") && text.contains("console") && text.contains("vsock.sock_1025"), "{text}");
}

#[tokio::test]
async fn an_agent_out_of_reach_is_reported_with_the_last_reason() {
    let helper = Helper::start(u32::MAX);
    let begun = Instant::now();
    let within = Duration::from_millis(300);
    let error = reach(&helper.endpoint(), None, policy(), within).await.unwrap_err();
    assert!(begun.elapsed() < within + Duration::from_secs(1));
    let text = error.to_string();
    let Error::Unreachable { attempts, .. } = error else { panic!("{text}") };
    assert!(attempts > 2 && attempts == helper.connections(), "{attempts} attempts");
    assert!(text.contains("300ms") && text.contains("vsock.sock, port 1024"), "{text}");
}

#[tokio::test]
async fn a_helper_that_is_not_there_is_reported() {
    let endpoint = Endpoint::Unix { path: Path::new("/nonexistent/vsock.sock").to_owned() };
    let error = reach(&endpoint, None, policy(), 5 * SHORT).await.unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
}

#[tokio::test]
async fn a_context_id_nobody_has_is_reported_in_time() {
    let endpoint = Endpoint::Vsock { cid: 0x7fff_fffe };
    let begun = Instant::now();
    let policy = Policy { first: Duration::ZERO, ..policy() };
    let error = reach(&endpoint, None, policy, Duration::from_millis(300)).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_millis(1300));
    assert!(matches!(error, Error::Unreachable { attempts: 1.., .. }), "{error}");
}

#[tokio::test]
async fn no_child_process_inherits_the_agents_socket() {
    let helper = Helper::start(0);
    let _listener = ReadyListener::bind(&helper.notice()).unwrap();
    let _client = reach(&helper.endpoint(), None, policy(), LONG).await.unwrap();
    let mut sockets = 0;
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let number = entry.file_name().into_string().unwrap();
        let socket = fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        // What the test program was started with is not ours.
        if !socket || number.parse::<u32>().unwrap() <= 2 {
            continue;
        }
        // Another test may just have closed it.
        let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{number}")) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = u32::from_str_radix(flags, 8).unwrap();
        assert_ne!(flags & 0o2_000_000, 0, "descriptor {number} is not close-on-exec");
        sockets += 1;
    }
    assert!(sockets >= 3, "{sockets} sockets seen");
}

#[tokio::test]
async fn the_pace_suits_the_endpoint() {
    let kernel = Policy::for_endpoint(&Endpoint::Vsock { cid: 3 }, Timeouts::default());
    assert_eq!((kernel.first, kernel.between), (Duration::ZERO, Duration::from_millis(50)));
    let helper = Policy::for_endpoint(&Endpoint::Unix { path: PathBuf::new() }, Timeouts::default());
    assert_eq!((helper.first, helper.between), (Duration::from_secs(2), Duration::from_secs(1)));
}
