//! Connections, packet by packet, with a guest that does as the test says.

use std::{io::ErrorKind, pin::pin};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc::UnboundedReceiver,
};

use super::*;
use crate::{
    vm::Vsock,
    vsock::device::{host::Host, packet, stream::ROOM},
};

const CID: u64 = 3;
const PORT: u32 = 1024;
/// What the guest's driver has room for in one packet.
const PACKET: usize = 4096;

struct Device {
    table: Table,
    host: Host,
    requests: UnboundedReceiver<Request>,
}

impl Device {
    fn new() -> Device {
        let wake = Arc::new(Notify::new());
        let (sender, requests) = mpsc::unbounded_channel();
        Device { table: Table::new(CID, wake.clone()), host: Host::new(sender, wake), requests }
    }

    /// The next packet for the guest.
    fn next(&mut self) -> Option<(Op, Header, Vec<u8>)> {
        while let Ok(request) = self.requests.try_recv() {
            self.table.serve(request);
        }
        if !self.table.owes() {
            return None;
        }
        let mut payload = Vec::new();
        let header = self.table.packet(PACKET, &mut payload).unwrap();
        assert_eq!((header.dst_cid, header.len as usize), (CID, payload.len()));
        Some((Op::of(header.op).unwrap(), header, payload))
    }

    fn ops(&mut self) -> Vec<Op> {
        std::iter::from_fn(|| self.next()).map(|(op, _, _)| op).collect()
    }

    /// The guest sends `op`.
    fn send(&mut self, op: Op, ports: Ports, flags: u32, payload: &[u8]) {
        let header = Header { flags, len: payload.len() as u32, ..header(op, ports) };
        self.table.receive(&header, payload);
    }

    /// A connection that the host has asked for and the guest has taken.
    async fn connected(&mut self) -> (Connection, Ports) {
        let Device { table, host, requests } = self;
        let mut connecting = pin!(host.connect(PORT));
        assert!(futures_pending(&mut connecting).await);
        table.serve(requests.recv().await.unwrap());
        assert!(table.owes());
        let request = table.packet(PACKET, &mut Vec::new()).unwrap();
        assert_eq!((Op::of(request.op), request.dst_port), (Some(Op::Request), PORT));
        assert!(!table.owes());
        let ports = Ports { host: request.src_port, guest: PORT };
        table.receive(&header(Op::Response, ports), &[]);
        let connection = connecting.await.unwrap();
        assert_eq!(connection.local_port, ports.host);
        (connection, ports)
    }
}

fn header(op: Op, ports: Ports) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: ports.guest,
        dst_port: ports.host,
        kind: STREAM,
        op: op.number(),
        buf_alloc: 10_000,
        ..Header::default()
    }
}

async fn futures_pending<F: Future>(future: &mut std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_end_is_told_by_itself() {
    let mut device = Device::new();
    let (mut host, ports) = device.connected().await;
    host.stream.write_all(b"question").await.unwrap();
    let (op, _, payload) = device.next().unwrap();
    assert_eq!((op, payload.as_slice()), (Op::Data, b"question".as_slice()));
    host.stream.shutdown().await.unwrap();
    let (op, header, _) = device.next().unwrap();
    assert_eq!((op, header.flags), (Op::Shutdown, packet::NO_MORE_SENDING));
    device.send(Op::Data, ports, 0, b"answer");
    device.send(Op::Shutdown, ports, packet::NO_MORE_SENDING, &[]);
    let mut answer = Vec::new();
    host.stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    drop(host);
    let (op, header, _) = device.next().unwrap();
    assert_eq!((op, header.flags), (Op::Shutdown, packet::NO_MORE_SENDING | packet::NO_MORE_RECEIVING));
    device.send(Op::Reset, ports, 0, &[]);
    assert!(device.table.connections.is_empty() && device.table.turns.is_empty() && device.next().is_none());
}

#[tokio::test]
async fn what_a_guest_has_sent_before_it_hangs_up_is_read_to_the_last_byte() {
    let mut device = Device::new();
    let (mut host, ports) = device.connected().await;
    let much = vec![7; ROOM as usize];
    device.send(Op::Data, ports, 0, &much);
    device.send(Op::Shutdown, ports, packet::NO_MORE_SENDING | packet::NO_MORE_RECEIVING, &[]);
    // The guest waits for this, and not for a reader.
    assert_eq!(device.ops(), [Op::Reset]);
    assert!(device.table.connections.is_empty());
    let mut read = Vec::new();
    host.stream.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, much);
    assert_eq!(host.stream.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn what_the_host_has_sent_before_it_hangs_up_reaches_the_guest() {
    let mut device = Device::new();
    let (mut host, ports) = device.connected().await;
    host.stream.write_all(&[1; PACKET + 1]).await.unwrap();
    drop(host);
    assert_eq!(device.ops(), [Op::Data, Op::Data, Op::Shutdown]);
    // Later packets of the guest's are for nobody, and no overrun.
    device.send(Op::Data, ports, 0, &vec![0; ROOM as usize + 1]);
    assert_eq!(device.ops(), [Op::CreditUpdate]);
}

#[tokio::test]
async fn the_guest_is_never_sent_more_than_it_has_room_for() {
    let mut device = Device::new();
    let (mut host, ports) = device.connected().await;
    host.stream.write_all(&[1; 15_000]).await.unwrap();
    let lens = |device: &mut Device| -> Vec<(Op, u32)> {
        std::iter::from_fn(|| device.next()).map(|(op, header, _)| (op, header.len)).collect()
    };
    let full = [(Op::Data, 4096), (Op::Data, 4096), (Op::Data, 1808), (Op::CreditRequest, 0)];
    assert_eq!(lens(&mut device), full);
    let taken = Header { fwd_cnt: 9_000, ..header(Op::CreditUpdate, ports) };
    device.table.receive(&taken, &[]);
    assert_eq!(lens(&mut device), [(Op::Data, 4096), (Op::Data, 904)]);
}

#[tokio::test]
async fn a_guest_that_sends_more_than_there_is_room_for_loses_its_connection() {
    let mut device = Device::new();
    let (mut host, ports) = device.connected().await;
    device.send(Op::Data, ports, 0, &vec![0; ROOM as usize]);
    device.send(Op::Data, ports, 0, &[0]);
    assert_eq!(device.ops(), [Op::Reset]);
    let mut read = Vec::new();
    let error = host.stream.read_to_end(&mut read).await.unwrap_err();
    assert_eq!((read.len(), error.kind()), (ROOM as usize, ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_guest_hears_of_new_room_when_it_is_worth_it() {
    let mut device = Device::new();
    let (mut host, ports) = device.connected().await;
    device.send(Op::Data, ports, 0, &vec![0; ROOM as usize]);
    let mut some = vec![0; ROOM as usize / 4 - 1];
    host.stream.read_exact(&mut some).await.unwrap();
    assert!(device.next().is_none());
    host.stream.read_exact(&mut [0]).await.unwrap();
    let (op, header, _) = device.next().unwrap();
    assert_eq!((op, header.fwd_cnt, header.buf_alloc), (Op::CreditUpdate, ROOM / 4, ROOM));
    assert!(device.next().is_none());
}

#[tokio::test]
async fn a_connection_the_guest_refuses_is_refused() {
    let mut device = Device::new();
    let connecting = async {
        device.table.serve(device.requests.recv().await.unwrap());
        let request = device.table.owes().then(|| device.table.packet(0, &mut Vec::new())).unwrap().unwrap();
        let ports = Ports { host: request.src_port, guest: PORT };
        device.table.receive(&header(Op::Reset, ports), &[]);
    };
    let (connected, ()) = tokio::join!(device.host.connect(PORT), connecting);
    assert_eq!(connected.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(device.table.connections.is_empty());
}

#[tokio::test]
async fn a_connection_nobody_waits_for_any_more_is_taken_down() {
    let mut device = Device::new();
    let mut connecting = Box::pin(device.host.connect(PORT));
    assert!(futures_pending(&mut connecting.as_mut()).await);
    drop(connecting);
    let (_, request, _) = device.next().unwrap();
    device.send(Op::Response, Ports { host: request.src_port, guest: PORT }, 0, &[]);
    assert_eq!(device.ops(), [Op::Reset]);
    assert!(device.table.connections.is_empty());
}

#[tokio::test]
async fn a_guest_reaches_listeners_and_nobody_else() {
    let mut device = Device::new();
    let mut listener = device.host.listen(1025).unwrap();
    assert!(device.next().is_none());
    device.send(Op::Request, Ports { host: 1025, guest: 77 }, 0, &[]);
    device.send(Op::Request, Ports { host: 1026, guest: 78 }, 0, &[]);
    let mut taken = listener.recv().await.unwrap();
    assert_eq!(device.ops(), [Op::Reset, Op::Response]);
    device.send(Op::Data, Ports { host: 1025, guest: 77 }, 0, b"hello");
    let mut hello = [0; 5];
    taken.stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    drop(listener);
    device.send(Op::Request, Ports { host: 1025, guest: 79 }, 0, &[]);
    assert_eq!(device.ops(), [Op::Reset]);
}

#[tokio::test]
async fn a_guest_that_knocks_all_day_is_refused_and_costs_no_memory() {
    let mut device = Device::new();
    let _listener = device.host.listen(1025).unwrap();
    assert!(device.next().is_none());
    for guest in 0..10_000 {
        device.send(Op::Request, Ports { host: 1025, guest }, 0, &[]);
        device.send(Op::Data, Ports { host: 9, guest }, 0, b"stray");
    }
    assert!(device.table.connections.len() <= 4);
    assert!(device.table.refusals.len() <= MOST_REFUSALS);
}

#[tokio::test]
async fn packets_that_make_no_sense_harm_nobody_else() {
    let mut device = Device::new();
    let (mut host, ports) = device.connected().await;
    for odd in [
        Header { src_cid: 4, ..header(Op::Data, ports) },
        Header { dst_cid: 1, ..header(Op::Data, ports) },
        Header { kind: 2, ..header(Op::Data, ports) },
    ] {
        device.table.receive(&odd, b"odd");
    }
    device.table.receive(&Header { op: 99, ..header(Op::Data, Ports { host: 1, guest: 1 }) }, &[]);
    assert_eq!(device.ops(), [Op::Reset; 4]);
    device.send(Op::Data, ports, 0, b"fine");
    let mut fine = [0; 4];
    host.stream.read_exact(&mut fine).await.unwrap();
    assert_eq!(&fine, b"fine");
    // A reset is never answered by another.
    device.send(Op::Reset, Ports { host: 1, guest: 1 }, 0, &[]);
    assert!(device.next().is_none());
}

#[tokio::test]
async fn each_connection_has_its_turn() {
    let mut device = Device::new();
    let (mut first, _) = device.connected().await;
    let (mut second, _) = device.connected().await;
    first.stream.write_all(&[1; 3 * PACKET]).await.unwrap();
    second.stream.write_all(&[2; 10]).await.unwrap();
    let order: Vec<u8> =
        std::iter::from_fn(|| device.next()).map(|(_, _, payload)| payload[0]).take(3).collect();
    assert_eq!(order, [1, 2, 1]);
}
