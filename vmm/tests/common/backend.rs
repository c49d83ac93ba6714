//! A program at the other end of vhost-user that agrees to everything and serves nothing: enough for QEMU to have the
//! device. See QEMU's "Vhost-user Protocol".

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

/// The requests that are answered by a number, and the one that is answered by a ring's number and place.
const GET_FEATURES: u32 = 1;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
/// Version 1 of virtio, and that there are features of the protocol, none of which it has: without that word QEMU takes
/// it to have no room for memory.
const FEATURES: u64 = 1 << 32 | 1 << 30;
/// Of a message's flags: its version, and that it is an answer.
const ANSWER: u32 = 0b101;

/// Serves one connection at `socket` until QEMU closes it.
pub(crate) fn start(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (mut qemu, _) = listener.accept().unwrap();
        // An error is the end of the connection.
        while answer(&mut qemu).is_ok() {}
    });
}

fn answer(qemu: &mut UnixStream) -> std::io::Result<()> {
    let mut header = [0; 12];
    qemu.read_exact(&mut header)?;
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let (request, size) = (word(0), word(8));
    let mut payload = vec![0; size as usize];
    qemu.read_exact(&mut payload)?;
    let number = match request {
        GET_FEATURES => FEATURES,
        GET_VRING_BASE => u64::from_ne_bytes(payload[..8].try_into().unwrap()) & u64::from(u32::MAX),
        GET_PROTOCOL_FEATURES | GET_QUEUE_NUM => 0,
        _ => return Ok(()),
    };
    let words = [request, ANSWER, 8].map(u32::to_ne_bytes).concat();
    qemu.write_all(&[words, number.to_ne_bytes().to_vec()].concat())
}
