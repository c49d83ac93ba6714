//! Questions to the kernel, and its answers.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// How often a list is asked for that changes while it is told.
const ATTEMPTS: usize = 8;

/// Messages begin at multiples of this (`NLMSG_ALIGNTO` of linux/netlink.h).
const ALIGNMENT: usize = 4;

/// The way to the kernel's networking, in one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// What came of a question.
#[derive(Default)]
struct Answers {
    messages: Vec<RouteNetlinkMessage>,
    /// What was told changed meanwhile.
    is_torn: bool,
    is_complete: bool,
}

impl Netlink {
    /// For the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open() -> io::Result<Netlink> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        // The kernel is port 0.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// All there is of what `question` is about.
    pub(crate) fn list(&mut self, question: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..ATTEMPTS {
            let answers = self.ask(question.clone(), NLM_F_DUMP)?;
            if !answers.is_torn {
                return Ok(answers.messages);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the list changes faster than the kernel can tell it",
        ))
    }

    /// Has the kernel do what `order` says, `flags` being those of a new object.
    pub(crate) fn order(&mut self, order: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(order, NLM_F_ACK | flags).map(drop)
    }

    fn ask(&mut self, question: RouteNetlinkMessage, flags: u16) -> io::Result<Answers> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (NLM_F_REQUEST | flags, self.sequence);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Answers::default();
        while !answers.is_complete {
            let (datagram, _) = self.socket.recv_from_full()?;
            answers.read(&datagram, self.sequence)?;
        }
        Ok(answers)
    }
}

impl Answers {
    fn read(&mut self, datagram: &[u8], sequence: u32) -> io::Result<()> {
        let mut rest = datagram;
        while !rest.is_empty() && !self.is_complete {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(ALIGNMENT);
            rest = rest.get(length..).unwrap_or_default();
            // What is left of a question that was given up.
            if message.header.sequence_number == sequence {
                self.take(message)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> io::Result<()> {
        self.is_torn |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(message) => self.messages.push(message),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Done(done) if done.code != 0 => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
            }
            NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => self.is_complete = true,
            _ => {}
        }
        Ok(())
    }
}
