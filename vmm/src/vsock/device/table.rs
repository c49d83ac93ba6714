//! The connections and listeners there are, and whose turn it is.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    connection::{Connection as Inner, Ports, Then},
    host::Request,
    packet::{HOST_CID, Header, Op, STREAM},
    stream::{Shared, Stream},
};
use crate::vm::Connection;

/// Most connections at a time, so that a guest cannot have the host's memory by opening more.
const MOST_CONNECTIONS: usize = 4096;
/// Most refusals a guest is owed. Those of a guest that does not fetch them are dropped.
const MOST_REFUSALS: usize = 128;

#[derive(Debug)]
pub(super) struct Table {
    guest_cid: u64,
    connections: HashMap<Ports, Inner>,
    listeners: HashMap<u32, mpsc::Sender<Connection>>,
    /// Every connection once; the first one is asked next for a packet.
    turns: VecDeque<Ports>,
    refusals: VecDeque<Header>,
    /// Wakes the device.
    device: Arc<Notify>,
}

impl Table {
    pub(super) fn new(guest_cid: u64, device: Arc<Notify>) -> Table {
        Table {
            guest_cid,
            connections: HashMap::new(),
            listeners: HashMap::new(),
            turns: VecDeque::new(),
            refusals: VecDeque::new(),
            device,
        }
    }

    /// Does what a program on the host asks for.
    pub(super) fn serve(&mut self, request: Request) {
        match request {
            Request::Listen { port, connections } => {
                self.listeners.insert(port, connections);
            }
            Request::Connect { ports, shared, answer } => self.connect(ports, shared, answer),
        }
    }

    fn connect(&mut self, ports: Ports, shared: Arc<Shared>, answer: oneshot::Sender<bool>) {
        if self.connections.len() >= MOST_CONNECTIONS || self.connections.contains_key(&ports) {
            let _ = answer.send(false);
            return;
        }
        self.insert(ports, Inner::to_guest(ports, shared, answer));
    }

    fn insert(&mut self, ports: Ports, connection: Inner) {
        self.connections.insert(ports, connection);
        self.turns.push_back(ports);
    }

    /// Takes in a packet of the guest's.
    pub(super) fn receive(&mut self, header: &Header, payload: &[u8]) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID || header.kind != STREAM {
            return self.refuse(header);
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let Some(connection) = self.connections.get_mut(&ports) else {
            return self.first_packet(ports, header);
        };
        match connection.receive(header, payload) {
            Then::Stays => {}
            Then::Gone => self.remove(ports),
            Then::Reset => {
                self.remove(ports);
                self.refuse(header);
            }
        }
    }

    /// A packet of no connection there is: a request for one, or a stray.
    fn first_packet(&mut self, ports: Ports, header: &Header) {
        if Op::of(header.op) != Some(Op::Request) || self.connections.len() >= MOST_CONNECTIONS {
            return self.refuse(header);
        }
        let Some(listener) = self.listeners.get(&ports.host) else { return self.refuse(header) };
        let shared = Arc::<Shared>::default();
        let stream = Stream::new(shared.clone(), self.device.clone());
        match listener.try_send(Connection { stream: Box::new(stream), local_port: ports.host }) {
            Ok(()) => self.insert(ports, Inner::from_guest(ports, shared, header)),
            Err(error) => {
                if matches!(error, mpsc::error::TrySendError::Closed(_)) {
                    self.listeners.remove(&ports.host);
                }
                self.refuse(header);
            }
        }
    }

    /// A refusal is not refused in turn, or two would never stop.
    fn refuse(&mut self, header: &Header) {
        if Op::of(header.op) != Some(Op::Reset) && self.refusals.len() < MOST_REFUSALS {
            self.refusals.push_back(header.refusal());
        }
    }

    fn remove(&mut self, ports: Ports) {
        self.connections.remove(&ports);
        self.turns.retain(|other| *other != ports);
    }

    /// Whether the guest is owed a packet. Makes that one the next.
    pub(super) fn owes(&mut self) -> bool {
        if !self.refusals.is_empty() {
            return true;
        }
        let owing = self.turns.iter().position(|ports| self.op_of(*ports).is_some());
        self.turns.rotate_left(owing.unwrap_or(0));
        owing.is_some()
    }

    fn op_of(&self, ports: Ports) -> Option<Op> {
        self.connections.get(&ports).and_then(Inner::owes)
    }

    /// The packet [`Table::owes`] has found, with at most `room` bytes of payload in `payload`.
    pub(super) fn packet(&mut self, room: usize, payload: &mut Vec<u8>) -> Option<Header> {
        let header = match self.refusals.pop_front() {
            Some(refusal) => refusal,
            None => {
                let ports = *self.turns.front()?;
                let connection = self.connections.get_mut(&ports)?;
                let op = connection.owes()?;
                // Behind the others, whose turn it is now.
                self.turns.rotate_left(1);
                connection.packet(op, room, payload)
            }
        };
        Some(Header { dst_cid: self.guest_cid, ..header })
    }

    /// Cuts every connection: there is no guest any more.
    pub(super) fn cut_all(&mut self) {
        self.connections.values_mut().for_each(|connection| {
            connection.cut(Then::Gone);
        });
        self.connections.clear();
        self.turns.clear();
        self.listeners.clear();
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.cut_all();
    }
}

#[cfg(test)]
mod tests;
