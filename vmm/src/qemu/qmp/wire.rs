//! The socket and the task that owns it.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use slog::{Logger, debug, warn};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::command::VersionInfo;
use super::{Call, Event};

/// The longest line that is read: QEMU is driven by its guest, and what it sends is bounded like everything else.
const LONGEST: usize = 1 << 20;

/// The first thing QEMU says.
#[derive(Debug, Deserialize)]
pub(super) struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Debug, Deserialize)]
struct GreetingBody {
    version: GreetingVersion,
}

#[derive(Debug, Deserialize)]
struct GreetingVersion {
    qemu: VersionInfo,
}

impl Greeting {
    pub(super) fn version(&self) -> VersionInfo {
        self.qmp.version.qemu
    }
}

/// What became of a command.
#[derive(Debug)]
pub(super) enum Answer {
    Return(Value),
    Error { class: String, desc: String },
}

/// Anything QEMU says after the greeting.
#[derive(Debug, Deserialize)]
struct Message {
    id: Option<u64>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// The socket, cut into lines.
pub(super) struct Wire {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    incoming: Vec<u8>,
    /// How much of `incoming` is known to hold no line's end.
    searched: usize,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Wire {
        let (read, write) = stream.into_split();
        Wire { read, write, incoming: Vec::new(), searched: 0 }
    }

    /// The next line; `None` once the connection is gone. May be dropped at any time and called again.
    pub(super) async fn receive(&mut self) -> Result<Option<Vec<u8>>, String> {
        receive(&mut self.read, &mut self.incoming, &mut self.searched).await
    }
}

async fn receive(
    read: &mut OwnedReadHalf,
    incoming: &mut Vec<u8>,
    searched: &mut usize,
) -> Result<Option<Vec<u8>>, String> {
    loop {
        if let Some(end) = incoming[*searched..].iter().position(|byte| *byte == b'\n') {
            let rest = incoming.split_off(*searched + end + 1);
            *searched = 0;
            return Ok(Some(std::mem::replace(incoming, rest)));
        }
        *searched = incoming.len();
        if incoming.len() > LONGEST {
            return Err(format!("a line of more than {LONGEST} bytes"));
        }
        // A reset is how a socketpair may end; whatever else goes wrong, there is no more QEMU to talk to.
        match read.read_buf(incoming).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Ok(None),
        }
    }
}

/// What is yet to be written of a command.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    /// Goes with the first byte: QEMU takes a descriptor that came before the command about it.
    fd: Option<OwnedFd>,
}

impl Outgoing {
    /// Writes some. May be dropped at any time and called again.
    async fn write(&mut self, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let written = match &self.fd {
            None => to.write(&self.bytes).await?,
            Some(fd) => {
                let socket: &UnixStream = (*to).as_ref();
                socket.async_io(Interest::WRITABLE, || send_with(socket, &self.bytes, fd)).await?
            }
        };
        self.fd = None;
        self.bytes.drain(..written);
        Ok(())
    }
}

fn send_with(socket: &UnixStream, bytes: &[u8], fd: &OwnedFd) -> io::Result<usize> {
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &rights, flags, None)?)
}

/// Serves callers until the connection ends or there are none left. What waits then is dropped, which tells it.
pub(super) async fn serve(
    wire: Wire,
    mut calls: mpsc::Receiver<Call>,
    events: broadcast::Sender<Event>,
    log: Logger,
) {
    let Wire { mut read, mut write, mut incoming, mut searched } = wire;
    let mut waiting: HashMap<u64, oneshot::Sender<Answer>> = HashMap::new();
    let mut outgoing = Outgoing::default();
    let mut last_id = 0;
    loop {
        tokio::select! {
            line = receive(&mut read, &mut incoming, &mut searched) => match line {
                Ok(Some(line)) => deliver(&line, &mut waiting, &events, &log),
                Ok(None) => return,
                Err(what) => return warn!(log, "qemu's monitor is given up: {}", what),
            },
            call = calls.recv(), if outgoing.bytes.is_empty() => {
                let Some(Call { command, arguments, fd, answer }) = call else { return };
                last_id += 1;
                waiting.retain(|_, answer| !answer.is_closed());
                waiting.insert(last_id, answer);
                debug!(log, "qmp"; "execute" => command);
                let line = json!({ "execute": command, "arguments": arguments, "id": last_id });
                outgoing = Outgoing { bytes: format!("{line}\n").into_bytes(), fd };
            }
            written = outgoing.write(&mut write), if !outgoing.bytes.is_empty() => match written {
                Ok(()) => {}
                Err(_) => return,
            },
        }
    }
}

fn deliver(
    line: &[u8],
    waiting: &mut HashMap<u64, oneshot::Sender<Answer>>,
    events: &broadcast::Sender<Event>,
    log: &Logger,
) {
    let message: Message = match serde_json::from_slice(line) {
        Ok(message) => message,
        Err(error) => return warn!(log, "qemu's monitor sent something else than json: {}", error),
    };
    if let Some(name) = message.event {
        debug!(log, "qmp"; "event" => &name);
        // Nobody listening is fine.
        let _ = events.send(Event { name, data: message.data });
        return;
    }
    let answer = match (message.returned, message.error) {
        (Some(value), _) => Answer::Return(value),
        (None, Some(Refusal { class, desc })) => Answer::Error { class, desc },
        (None, None) => return warn!(log, "qemu's monitor sent neither an answer nor an event"),
    };
    match message.id.and_then(|id| waiting.remove(&id)) {
        // The caller may have given up a moment ago.
        Some(caller) => drop(caller.send(answer)),
        None => debug!(log, "qmp answer that nobody waits for"),
    }
}
