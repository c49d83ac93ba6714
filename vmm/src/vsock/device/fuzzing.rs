//! A guest that puts anything into the memory that it shares with its device.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, mpsc, oneshot},
};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    RINGS,
    connection::Ports,
    exchange,
    host::Request,
    ring::{Memory, Ring},
    stream::{Shared, Stream},
    table::Table,
};
use crate::vm::{self, Connection};

const GUEST: u64 = 3;
const SIZE: usize = 64 << 10;

/// Entries of a ring, and where its three parts are.
const ENTRIES: u16 = 16;
const PARTS: [[u64; 3]; RINGS] = [[0, 0x100, 0x140], [0x200, 0x300, 0x340]];

/// How much of the input is the memory of one round: the rings, and packets behind them.
const ROUND: usize = 0x800;

/// Gives the device `said`, round by round, as what a guest has written over its memory from 0 on.
pub fn vsock(said: &[u8]) {
    let Ok(memory) = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]) else { return };
    let memory = Arc::new(memory);
    let mut rings = PARTS.map(|parts| ring(&memory, parts));
    let mut host = Programs::start();
    for round in said.chunks(ROUND) {
        memory.write_slice(round, GuestAddress(0)).expect("a round fits");
        // An error is the end of the device, which is the guest's loss.
        if exchange(&mut rings, &memory, &mut host.table).is_err() {
            break;
        }
        host.go_on();
    }
    host.table.cut_all();
}

fn ring(memory: &Memory, parts: [u64; 3]) -> Ring {
    let mut ring = Ring::new().expect("a ring");
    ring.queue.set_size(ENTRIES);
    ring.place(memory, parts).expect("its places");
    ring.queue.set_ready(true);
    ring.enabled = true;
    ring
}

/// What uses the device on the host: a connection to port 2 of the guest, and whoever comes to port 1.
struct Programs {
    table: Table,
    listener: mpsc::Receiver<Connection>,
    streams: Vec<Box<dyn vm::Stream>>,
    _answer: oneshot::Receiver<bool>,
}

impl Programs {
    fn start() -> Programs {
        let device = Arc::new(Notify::new());
        let mut table = Table::new(GUEST, device.clone());
        let (connections, listener) = mpsc::channel(4);
        table.serve(Request::Listen { port: 1, connections });
        let (shared, (answer, _answer)) = (Arc::<Shared>::default(), oneshot::channel());
        table.serve(Request::Connect {
            ports: Ports { host: 1 << 30, guest: 2 },
            shared: shared.clone(),
            answer,
        });
        Programs { table, listener, streams: vec![Box::new(Stream::new(shared, device))], _answer }
    }

    /// Takes some of what has come, and sends it back.
    fn go_on(&mut self) {
        while let Ok(connection) = self.listener.try_recv() {
            self.streams.push(connection.stream);
        }
        self.streams.retain_mut(|stream| {
            let mut some = [0; 1000];
            match now(stream.read(&mut some)) {
                Some(Ok(1..)) => now(stream.write_all(&some)).is_none_or(|written| written.is_ok()),
                Some(_) => false,
                None => true,
            }
        });
    }
}

/// What comes of `work` without any waiting.
fn now<T>(work: impl Future<Output = T>) -> Option<T> {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}
