//! One connection: which packet the guest is owed next, and what a packet of its means.
//!
//! ```text
//! host's program:  Asking --RESPONSE--> Open --+
//! guest's:         Open (owes a RESPONSE)  ----+-- SHUTDOWN of one or both ways, RESET --> gone
//! ```

use std::{num::Wrapping, sync::Arc};

use tokio::sync::oneshot;

use super::{
    packet::{HOST_CID, Header, NO_MORE_RECEIVING, NO_MORE_SENDING, Op, STREAM},
    stream::{Ended, Overrun, ROOM, Shared},
};

/// Both ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    shared: Arc<Shared>,
    /// Who waits for the guest to take the connection, and whether it has been asked to.
    asking: Option<oneshot::Sender<bool>>,
    owes_request: bool,
    owes_response: bool,
    owes_credit: bool,
    /// The guest has been asked how much room it has, and has not said.
    asked_for_credit: bool,
    told: Ended,
    /// What the guest has room for in all, what its program has taken, and what it was sent.
    guest_room: u32,
    guest_taken: Wrapping<u32>,
    sent: Wrapping<u32>,
}

/// What becomes of a connection after a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    Stays,
    Gone,
    /// As `Gone`, and the guest has to be told.
    Reset,
}

impl Connection {
    /// One that the host asks for. `answer` hears whether the guest takes it.
    pub(super) fn to_guest(ports: Ports, shared: Arc<Shared>, answer: oneshot::Sender<bool>) -> Connection {
        Connection {
            ports,
            shared,
            asking: Some(answer),
            owes_request: true,
            owes_response: false,
            owes_credit: false,
            asked_for_credit: false,
            told: Ended::No,
            guest_room: 0,
            guest_taken: Wrapping(0),
            sent: Wrapping(0),
        }
    }

    /// One that the guest has asked for by `request`, and that the host takes.
    pub(super) fn from_guest(ports: Ports, shared: Arc<Shared>, request: &Header) -> Connection {
        let (answer, _) = oneshot::channel();
        let mut connection = Connection::to_guest(ports, shared, answer);
        connection.asking = None;
        connection.owes_request = false;
        connection.owes_response = true;
        connection.note_credit(request);
        connection
    }

    /// Takes in a packet of the guest's.
    pub(super) fn receive(&mut self, header: &Header, payload: &[u8]) -> Then {
        self.note_credit(header);
        match Op::of(header.op) {
            Some(Op::Response) => match self.asking.take() {
                // Nobody waits any more: the end of the stream nobody has takes it down.
                Some(answer) => answer.send(true).map_or(Then::Reset, |()| Then::Stays),
                None => self.cut(Then::Reset),
            },
            Some(Op::Data) if self.asking.is_none() => self.data(payload),
            Some(Op::Shutdown) => self.shut_down(header.flags),
            Some(Op::CreditUpdate) => Then::Stays,
            Some(Op::CreditRequest) => {
                self.owes_credit = true;
                Then::Stays
            }
            Some(Op::Reset) => self.cut(Then::Gone),
            Some(Op::Request | Op::Data) | None => self.cut(Then::Reset),
        }
    }

    fn data(&mut self, payload: &[u8]) -> Then {
        let delivered = self.shared.state().deliver(payload);
        match delivered {
            Ok(()) => Then::Stays,
            Err(Overrun) => self.cut(Then::Reset),
        }
    }

    fn shut_down(&mut self, flags: u32) -> Then {
        let mut state = self.shared.state();
        if flags & NO_MORE_SENDING != 0 {
            state.guest_done();
        }
        if flags & NO_MORE_RECEIVING != 0 {
            state.guest_deaf();
        }
        // The guest waits for this before it gives its port up. What it has sent is here, so nothing is lost.
        let both = NO_MORE_SENDING | NO_MORE_RECEIVING;
        if flags & both == both { Then::Reset } else { Then::Stays }
    }

    /// Cuts the connection, and refuses it if it is not one yet.
    pub(super) fn cut(&mut self, then: Then) -> Then {
        if let Some(answer) = self.asking.take() {
            let _ = answer.send(false);
        }
        self.shared.state().reset();
        then
    }

    fn note_credit(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        self.guest_taken = Wrapping(header.fwd_cnt);
        self.asked_for_credit = false;
    }

    fn credit(&self) -> usize {
        let under_way = (self.sent - self.guest_taken).0;
        self.guest_room.saturating_sub(under_way) as usize
    }

    /// The kind of packet the guest is owed next.
    pub(super) fn owes(&self) -> Option<Op> {
        if self.owes_request {
            return Some(Op::Request);
        }
        if self.asking.is_some() {
            return None;
        }
        if self.owes_response {
            return Some(Op::Response);
        }
        let state = self.shared.state();
        if state.has_bytes_for_guest() {
            if self.credit() > 0 {
                return Some(Op::Data);
            }
            if !self.asked_for_credit {
                return Some(Op::CreditRequest);
            }
        }
        let ended = state.ended();
        if ended != Ended::No && self.told != Ended::Both && self.told != ended {
            return Some(Op::Shutdown);
        }
        (self.owes_credit || state.is_worth_telling()).then_some(Op::CreditUpdate)
    }

    /// Makes the packet that [`Connection::owes`] tells of, with at most `room` bytes of payload in `payload`.
    pub(super) fn packet(&mut self, op: Op, room: usize, payload: &mut Vec<u8>) -> Header {
        let credit = self.credit();
        let mut state = self.shared.state();
        let mut flags = 0;
        match op {
            Op::Request => self.owes_request = false,
            Op::Response => self.owes_response = false,
            Op::CreditRequest => self.asked_for_credit = true,
            Op::Data => {
                state.take(room.min(credit), payload);
                self.sent += Wrapping(payload.len() as u32);
            }
            Op::Shutdown => {
                self.told = state.ended();
                let both = NO_MORE_SENDING | NO_MORE_RECEIVING;
                flags = if self.told == Ended::Both { both } else { NO_MORE_SENDING };
            }
            Op::CreditUpdate | Op::Reset => {}
        }
        self.owes_credit = false;
        Header {
            src_cid: HOST_CID,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: payload.len() as u32,
            kind: STREAM,
            op: op.number(),
            flags,
            buf_alloc: ROOM,
            fwd_cnt: state.tell_taken(),
            ..Header::default()
        }
    }
}
