//! A vsock device of our own, in this process: QEMU's vhost-user on one side, streams on the other.
//!
//! ```text
//! guest's driver --ring--> take_from_guest --> Connection --> Stream --> who called connect, or listens
//!                <--ring-- give_to_guest  <--------+
//! ```
//!
//! One task owns all of it and wakes for QEMU's messages, the guest's kicks, and streams that were read or written.
//! Everything in guest memory is untrusted: lengths are checked against what was promised, and what makes no sense
//! costs the guest its connection, or its device.

mod connection;
mod frontend;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod host;
mod packet;
mod ring;
mod stream;
mod table;

use std::{
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use slog::{Logger, debug, warn};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use vhost::vhost_user::{BackendReqHandler, Error as Protocol};

use frontend::{Frontend, RINGS};
use host::Request;
use packet::{HEADER, Header};
use ring::{Chain, Memory, Ring, kicked};
use table::Table;

pub(crate) use host::Host;

/// Most bytes of payload in one packet of a guest: what Linux sends at the most.
const LONGEST_PACKET: usize = 64 * 1024;
/// Packets taken from a guest before others on this thread have their turn.
const AT_A_TIME: usize = 128;
/// The rings' places.
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;

/// A device whose task runs; dropping it ends the task, and with it every stream.
#[derive(Debug)]
pub(crate) struct Device(JoinHandle<()>);

impl Drop for Device {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a device for the guest of address `cid`. The descriptor is what QEMU's character device inherits.
pub(crate) fn start(cid: u32, log: Logger) -> io::Result<(Device, Host, OwnedFd)> {
    let (ours, qemus) = UnixStream::pair()?;
    let frontend = Arc::new(Mutex::new(Frontend::new(cid)?));
    let handler = Handler(BackendReqHandler::from_stream(ours, frontend.clone()));
    // SAFETY: the handler always gives the one socket it owns, and nobody takes that out of it.
    let handler = unsafe { AsyncFd::register_with_interest(handler, Interest::READABLE) }?;
    let (sender, requests) = mpsc::unbounded_channel();
    let wake = Arc::new(Notify::new());
    let table = Table::new(cid.into(), wake.clone());
    let host = Host::new(sender, wake.clone());
    let running = Running { handler, frontend, table, requests, wake, log };
    Ok((Device(tokio::spawn(running.run())), host, qemus.into()))
}

/// The protocol's own handler, in the form tokio asks for.
struct Handler(BackendReqHandler<Mutex<Frontend>>);

impl AsRawFd for Handler {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

enum Next {
    Handled,
    Nothing,
    HungUp,
}

impl Handler {
    /// Handles a message of QEMU's, if there is one. The protocol's handler would wait for it, and must not; what
    /// has begun is here whole, as QEMU sends each message at once.
    fn next_message(&mut self) -> Result<Next, Protocol> {
        let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.as_raw_fd(), &mut [0], look) {
            Err(Errno::EAGAIN) => return Ok(Next::Nothing),
            Err(_) | Ok(0) => return Ok(Next::HungUp),
            Ok(_) => {}
        }
        match self.0.handle_request() {
            Ok(()) => Ok(Next::Handled),
            Err(Protocol::Disconnected | Protocol::PartialMessage | Protocol::SocketBroken(_)) => {
                Ok(Next::HungUp)
            }
            Err(error) => Err(error),
        }
    }
}

struct Running {
    handler: AsyncFd<Handler>,
    frontend: Arc<Mutex<Frontend>>,
    table: Table,
    requests: mpsc::UnboundedReceiver<Request>,
    /// A stream was read, written, shut down or dropped.
    wake: Arc<Notify>,
    log: Logger,
}

impl Running {
    async fn run(mut self) {
        match self.serve().await {
            Ok(()) => debug!(self.log, "vsock: the virtual machine has hung up"),
            Err(error) => warn!(self.log, "vsock: the device stops"; "why" => error.to_string()),
        }
        // Nobody is to wait for a guest that can no longer be reached.
        self.table.cut_all();
    }

    /// Until QEMU hangs up.
    async fn serve(&mut self) -> io::Result<()> {
        loop {
            let more = self.move_packets()?;
            let [to_guest, from_guest] = frontend::lock(&self.frontend).rings.each_ref().map(Ring::kick);
            tokio::select! {
                biased;
                ready = self.handler.readable_mut() => {
                    let mut ready = ready?;
                    match ready.get_inner_mut().next_message() {
                        Ok(Next::Handled) => {}
                        Ok(Next::Nothing) => ready.clear_ready(),
                        Ok(Next::HungUp) => return Ok(()),
                        Err(error) => return Err(io::Error::other(error)),
                    }
                }
                Some(request) = self.requests.recv() => self.table.serve(request),
                () = kicked(from_guest) => {}
                () = kicked(to_guest) => {}
                () = self.wake.notified() => {}
                // Everybody else on this thread first.
                () = tokio::task::yield_now(), if more => {}
            }
        }
    }

    /// Moves what there is both ways; tells whether there is more.
    fn move_packets(&mut self) -> io::Result<bool> {
        let mut frontend = frontend::lock(&self.frontend);
        let Some(memory) = frontend.memory() else { return Ok(false) };
        exchange(&mut frontend.rings, &memory, &mut self.table).map_err(io::Error::other)
    }
}

fn exchange(
    rings: &mut [Ring; RINGS],
    memory: &Memory,
    table: &mut Table,
) -> Result<bool, virtio_queue::Error> {
    let more = take_from_guest(&mut rings[FROM_GUEST], memory, table)?
        | give_to_guest(&mut rings[TO_GUEST], memory, table)?;
    rings.iter_mut().try_for_each(|ring| ring.call(memory))?;
    Ok(more)
}

/// Takes what the guest has sent; tells whether there is more.
fn take_from_guest(ring: &mut Ring, memory: &Memory, table: &mut Table) -> Result<bool, virtio_queue::Error> {
    let mut payload = Vec::new();
    for _ in 0..AT_A_TIME {
        let Some(chain) = ring.next(memory)? else { return Ok(false) };
        let head = chain.head_index();
        let mut header = [0; HEADER];
        payload.clear();
        let read = ring::read(chain, memory, &mut header, &mut payload, LONGEST_PACKET);
        let header = Header::parse(&header);
        // What Linux sends has just as much payload as its header says.
        if read.is_ok() && header.len as usize <= payload.len() {
            table.receive(&header, &payload[..header.len as usize]);
        }
        ring.give_back(memory, head, 0)?;
    }
    Ok(true)
}

/// Gives the guest what it is owed, as far as it has room; tells whether there is more that it has room for.
fn give_to_guest(ring: &mut Ring, memory: &Memory, table: &mut Table) -> Result<bool, virtio_queue::Error> {
    let mut payload = Vec::new();
    for _ in 0..AT_A_TIME {
        if !table.owes() {
            return Ok(false);
        }
        let Some(chain) = ring.next(memory)? else { return Ok(false) };
        let head = chain.head_index();
        let written = write_packet(chain, memory, table, &mut payload);
        ring.give_back(memory, head, written.unwrap_or(0))?;
    }
    Ok(true)
}

/// Writes the packet whose turn it is; the bytes written. A chain too short for a header holds nothing.
fn write_packet(chain: Chain, memory: &Memory, table: &mut Table, payload: &mut Vec<u8>) -> Option<usize> {
    let mut writer = chain.writer(memory).ok()?;
    let room = writer.available_bytes().checked_sub(HEADER)?;
    payload.clear();
    let header = table.packet(room, payload)?;
    writer.write_all(&header.bytes()).ok()?;
    writer.write_all(payload).ok()?;
    Some(HEADER + payload.len())
}
