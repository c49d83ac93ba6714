//! The header of a packet on the wire (virtio specification 1.2, section 5.10.6).

/// Bytes of a header.
pub(super) const HEADER: usize = 44;
/// The host's address.
pub(super) const HOST_CID: u64 = 2;
/// The one type of socket there is here.
pub(super) const STREAM: u16 = 1;
/// In a SHUTDOWN: its sender will receive no more.
pub(super) const NO_MORE_RECEIVING: u32 = 1;
/// In a SHUTDOWN: its sender will send no more.
pub(super) const NO_MORE_SENDING: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

const OPS: [(u16, Op); 7] = [
    (1, Op::Request),
    (2, Op::Response),
    (3, Op::Reset),
    (4, Op::Shutdown),
    (5, Op::Data),
    (6, Op::CreditUpdate),
    (7, Op::CreditRequest),
];

impl Op {
    /// `None` for a number that is none of them.
    pub(super) fn of(number: u16) -> Option<Op> {
        OPS.iter().find(|(known, _)| *known == number).map(|(_, op)| *op)
    }

    pub(super) fn number(self) -> u16 {
        OPS.iter().find(|(_, known)| *known == self).map_or(0, |(number, _)| *number)
    }
}

/// A header, its numbers as they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes that the sender has room for on this connection in all.
    pub(super) buf_alloc: u32,
    /// Bytes of this connection that the sender's program has taken so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Header {
        let mut rest = bytes.as_slice();
        Header {
            src_cid: u64::from_le_bytes(next(&mut rest)),
            dst_cid: u64::from_le_bytes(next(&mut rest)),
            src_port: u32::from_le_bytes(next(&mut rest)),
            dst_port: u32::from_le_bytes(next(&mut rest)),
            len: u32::from_le_bytes(next(&mut rest)),
            kind: u16::from_le_bytes(next(&mut rest)),
            op: u16::from_le_bytes(next(&mut rest)),
            flags: u32::from_le_bytes(next(&mut rest)),
            buf_alloc: u32::from_le_bytes(next(&mut rest)),
            fwd_cnt: u32::from_le_bytes(next(&mut rest)),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(HEADER);
        all.extend(self.src_cid.to_le_bytes());
        all.extend(self.dst_cid.to_le_bytes());
        for word in [self.src_port, self.dst_port, self.len] {
            all.extend(word.to_le_bytes());
        }
        all.extend(self.kind.to_le_bytes());
        all.extend(self.op.to_le_bytes());
        for word in [self.flags, self.buf_alloc, self.fwd_cnt] {
            all.extend(word.to_le_bytes());
        }
        all
    }

    /// The refusal of this packet: back to where it came from.
    pub(super) fn refusal(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset.number(),
            ..Header::default()
        }
    }
}

/// Cuts the first `N` bytes off; zeros if there are fewer, which a header's length rules out.
fn next<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((first, others)) => {
            *rest = others;
            *first
        }
        None => [0; N],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_it_was_after_a_trip_over_the_wire() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0xdead_beef,
            dst_port: 1024,
            len: 7,
            kind: STREAM,
            op: Op::Data.number(),
            flags: 3,
            buf_alloc: 0x40000,
            fwd_cnt: 9,
        };
        let bytes: [u8; HEADER] = header.bytes().try_into().unwrap();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!(Header::parse(&bytes), header);
    }

    #[test]
    fn unknown_operations_are_none() {
        assert_eq!((Op::of(0), Op::of(8), Op::of(5)), (None, None, Some(Op::Data)));
    }
}
