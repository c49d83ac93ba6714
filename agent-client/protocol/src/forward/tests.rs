//! Both sides of it, with a client, a server, and what is like a vsock connection in between.

use std::time::Duration;

use tokio::{
    io::{DuplexStream, duplex},
    net::TcpListener,
    task::JoinHandle,
    time::timeout,
};

use super::*;

/// How long what is to happen at once may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Bytes on their way at most: less than a frame.
const WIRE: usize = 1000;

/// A client and a server that are connected by way of host and guest.
struct Connected {
    client: TcpStream,
    server: TcpStream,
    host: JoinHandle<io::Result<()>>,
    guest: JoinHandle<io::Result<()>>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

fn carry(stream: TcpStream, wire: DuplexStream) -> JoinHandle<io::Result<()>> {
    tokio::spawn(async move { Carried::new(stream)?.over(wire).await })
}

async fn connected() -> Connected {
    let (host, guest) = duplex(WIRE);
    let ((client, host_side), (guest_side, server)) = (pair().await, pair().await);
    Connected { client, server, host: carry(host_side, host), guest: carry(guest_side, guest) }
}

/// One side, its TCP peer, and the end of the wire that the other side would have.
async fn one_side() -> (TcpStream, DuplexStream, JoinHandle<io::Result<()>>) {
    let (wire, other) = duplex(WIRE);
    let (peer, stream) = pair().await;
    (peer, other, carry(stream, wire))
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.expect("soon")
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 7) as u8 ^ (at % 251) as u8 ^ seed).collect()
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    soon(stream.read_to_end(&mut all)).await.map(|_| all)
}

#[tokio::test]
async fn much_goes_both_ways_at_once() {
    let Connected { client, server, host, guest } = connected().await;
    let ends = [(client, 1), (server, 2)].map(|(stream, seed)| {
        tokio::spawn(async move {
            let (mut from, mut to) = stream.into_split();
            let writes = tokio::spawn(async move { to.write_all(&bytes(3_000_000, seed)).await });
            let mut all = Vec::new();
            soon(from.read_to_end(&mut all)).await.unwrap();
            writes.await.unwrap().unwrap();
            all
        })
    });
    let [from_server, from_client] = ends;
    assert!(from_server.await.unwrap() == bytes(3_000_000, 2));
    assert!(from_client.await.unwrap() == bytes(3_000_000, 1));
    soon(host).await.unwrap().unwrap();
    soon(guest).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_way_that_has_ended_leaves_the_other_open() {
    let Connected { mut client, mut server, host, guest } = connected().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read(&mut server).await.unwrap(), b"question");
    assert!(!host.is_finished() && !guest.is_finished());
    server.write_all(b"answer").await.unwrap();
    drop(server);
    assert_eq!(read(&mut client).await.unwrap(), b"answer");
    soon(host).await.unwrap().unwrap();
    soon(guest).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_of_one_end_is_one_of_the_other() {
    for is_half_closed in [false, true] {
        let Connected { mut client, mut server, host, guest } = connected().await;
        server.write_all(b"half of it").await.unwrap();
        let mut half = [0; 10];
        soon(client.read_exact(&mut half)).await.unwrap();
        if is_half_closed {
            client.shutdown().await.unwrap();
            assert_eq!(read(&mut server).await.unwrap(), b"");
        }
        server.set_zero_linger().unwrap();
        drop(server);
        assert_eq!(read(&mut client).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(soon(guest).await.unwrap().is_err());
        assert!(soon(host).await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_reset_is_seen_while_the_other_end_takes_nothing() {
    let Connected { mut client, server, host, guest } = connected().await;
    // As much as there is room for on the way.
    while timeout(Duration::from_millis(200), client.write_all(&bytes(1 << 20, 0))).await.is_ok() {}
    client.set_zero_linger().unwrap();
    drop(client);
    assert!(soon(host).await.unwrap().is_err());
    // It has not been asked yet.
    drop(server);
    assert!(soon(guest).await.unwrap().is_err());
}

#[tokio::test]
async fn a_hang_up_before_the_end_is_a_reset() {
    // At once, within a head, within a frame, and behind the end of the one way.
    for sent in [&b""[..], b"\0", b"\0\x05abc", b"\0\0"] {
        let (mut peer, mut other, side) = one_side().await;
        other.write_all(sent).await.unwrap();
        drop(other);
        assert!(soon(side).await.unwrap().is_err(), "{sent:?}");
        let end = match read(&mut peer).await {
            // The end that was told comes first.
            Ok(_) if sent == END => {
                peer.write_all(b"x").await.and(read(&mut peer).await.map(drop)).map(|()| 0)
            }
            end => end.map(|all| all.len()),
        };
        assert!(end.is_err(), "{sent:?}: {end:?}");
    }
}

#[tokio::test]
async fn what_comes_behind_the_end_breaks_it_off() {
    let (_peer, mut other, side) = one_side().await;
    other.write_all(b"\0\0\0").await.unwrap();
    let why = soon(side).await.unwrap().unwrap_err();
    assert_eq!(why.kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn one_that_is_given_up_is_reset() {
    let (mut peer, mut other, side) = one_side().await;
    peer.write_all(b"x").await.unwrap();
    soon(other.read_exact(&mut [0; HEAD + 1])).await.unwrap();
    side.abort();
    assert_eq!(read(&mut peer).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn frames_are_as_the_page_says() {
    let (mut peer, mut other, side) = one_side().await;
    peer.write_all(b"abc").await.unwrap();
    peer.shutdown().await.unwrap();
    let mut frames = [0; 7];
    soon(other.read_exact(&mut frames)).await.unwrap();
    assert_eq!(&frames, b"\0\x03abc\0\0");
    other.write_all(b"\0\x02de\0\0").await.unwrap();
    assert_eq!(read(&mut peer).await.unwrap(), b"de");
    soon(side).await.unwrap().unwrap();
}

#[test]
fn a_target_is_what_was_connected_to() {
    for (local, wire, first) in [
        ("127.0.0.1:80", [4, 0, 80], "127.0.0.1:80"),
        ("[::1]:8080", [6, 0x1f, 0x90], "[::1]:8080"),
        ("[::ffff:127.0.0.1]:65535", [4, 255, 255], "127.0.0.1:65535"),
    ] {
        let target = Target::of(local.parse().unwrap());
        assert_eq!(target.to_bytes(), wire);
        assert_eq!(Target::from_bytes(wire), Some(target));
        let addresses = target.addresses();
        assert_eq!(addresses[0], first.parse().unwrap());
        assert_ne!(addresses[0].is_ipv4(), addresses[1].is_ipv4());
    }
    assert_eq!(Target::from_bytes([5, 0, 80]), None);
}
