//! Task events: as containerd hands them on (`ctr events`), and as a shim sends them (a sink of our own).

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::{self, TtrpcContext};
use containerd_shim_protos::{Events, create_events, events as wire};
use nix::sys::signal::{Signal, kill};

use crate::assets::Assets;
use crate::command::pid_of;
use crate::{Context, Result, fail};

/// Events of one source in the order they came in, as one line of text each.
#[derive(Clone, Default)]
pub struct EventLog(Arc<(Mutex<Vec<String>>, Condvar)>);

impl EventLog {
    /// Those that contain `part`, so far.
    pub fn with(&self, part: &str) -> Vec<String> {
        self.lines().iter().filter(|line| line.contains(part)).cloned().collect()
    }

    /// Waits for a line for which `is` holds, and returns it.
    pub fn wait_for(&self, deadline: Duration, is: impl Fn(&str) -> bool) -> Result<String> {
        let until = Instant::now() + deadline;
        let mut lines = self.lines();
        loop {
            if let Some(line) = lines.iter().find(|line| is(line)) {
                return Ok(line.clone());
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                fail!("no such event within {deadline:?}; there were: {}", lines.join("; "));
            };
            let woken = self.0.1.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner);
            lines = woken.0;
        }
    }

    fn push(&self, line: String) {
        self.lines().push(line);
        self.0.1.notify_all();
    }

    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `ctr events`, followed for as long as the value lives. Its lines read `<time> <namespace> <topic> <json>`.
pub struct Follower {
    child: Child,
    /// What it has printed.
    pub log: EventLog,
}

impl Follower {
    /// Follows the events of the containerd at `socket`.
    pub fn start(assets: &Assets, socket: &Path) -> Result<Follower> {
        let mut child = Command::new(&assets.ctr)
            .arg("--address")
            .arg(socket)
            .arg("events")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("ctr events")?;
        let log = EventLog::default();
        let stdout = child.stdout.take().context("the output of ctr events")?;
        let sink = log.clone();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                sink.push(line);
            }
        });
        Ok(Follower { child, log })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = kill(pid_of(&self.child), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// A server for the events of one shim, in containerd's place.
pub struct Sink {
    // A ttrpc server serves for as long as it lives.
    _server: ttrpc::Server,
    /// What arrived: `<topic> <fields>`.
    pub log: EventLog,
    /// The socket that a shim is told by `TTRPC_ADDRESS`.
    pub socket: PathBuf,
}

impl Sink {
    /// Listens on `socket`.
    pub fn listen(socket: PathBuf) -> Result<Sink> {
        let log = EventLog::default();
        let service = create_events(Arc::new(Receiver(log.clone())));
        let address = format!("unix://{}", socket.display());
        let mut server = ttrpc::Server::new().bind(&address)?.register_service(service);
        server.start()?;
        Ok(Sink { _server: server, log, socket })
    }
}

struct Receiver(EventLog);

impl Events for Receiver {
    fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let body = envelope.event.unwrap_or_default();
        let fields = describe(&body.type_url, &body.value).unwrap_or_else(|| format!("unreadable {body:?}"));
        self.0.push(format!("{} {fields}", envelope.topic));
        Ok(Empty::new())
    }
}

/// The fields of an event that are the same for every runtime and every run. Pids and times are not.
fn describe(type_url: &str, body: &[u8]) -> Option<String> {
    let name = type_url.rsplit('.').next()?;
    let text = match name {
        "TaskExit" => {
            let event = wire::task::TaskExit::parse_from_bytes(body).ok()?;
            let dated = event.exited_at.is_some();
            format!("{} id={} status={} dated={dated}", event.container_id, event.id, event.exit_status)
        }
        "TaskDelete" => {
            let event = wire::task::TaskDelete::parse_from_bytes(body).ok()?;
            format!("{} id={} status={}", event.container_id, event.id, event.exit_status)
        }
        "TaskExecAdded" => {
            let event = wire::task::TaskExecAdded::parse_from_bytes(body).ok()?;
            format!("{} exec={}", event.container_id, event.exec_id)
        }
        "TaskExecStarted" => {
            let event = wire::task::TaskExecStarted::parse_from_bytes(body).ok()?;
            format!("{} exec={}", event.container_id, event.exec_id)
        }
        "TaskCreate" => wire::task::TaskCreate::parse_from_bytes(body).ok()?.container_id,
        "TaskStart" => wire::task::TaskStart::parse_from_bytes(body).ok()?.container_id,
        "TaskPaused" => wire::task::TaskPaused::parse_from_bytes(body).ok()?.container_id,
        "TaskResumed" => wire::task::TaskResumed::parse_from_bytes(body).ok()?.container_id,
        "TaskOOM" => wire::task::TaskOOM::parse_from_bytes(body).ok()?.container_id,
        other => other.to_owned(),
    };
    Some(text)
}
