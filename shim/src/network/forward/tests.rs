//! Against the kernel, each in a network namespace of its own; the guest is a task that answers as the agent does.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
use slog::{Discard, o};
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use vmm::{Connection, Listener};

use super::*;
use crate::fakes::Pod;

/// How long what is to happen at once may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A guest whose agent hands on each connection with what it is for.
#[derive(Debug)]
struct Guest {
    forwards: bool,
    asked: AtomicUsize,
    answer: u8,
    connections: UnboundedSender<(Target, DuplexStream)>,
}

impl Guest {
    fn new(forwards: bool, answer: u8) -> (Arc<Guest>, UnboundedReceiver<(Target, DuplexStream)>) {
        let (connections, arrivals) = unbounded_channel();
        (Arc::new(Guest { forwards, asked: AtomicUsize::default(), answer, connections }), arrivals)
    }
}

#[async_trait]
impl Vsock for Guest {
    async fn connect(&self, port: u32) -> io::Result<Connection> {
        assert_eq!(port, FORWARD_PORT);
        self.asked.fetch_add(1, Ordering::Relaxed);
        if !self.forwards {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (host, mut guest) = duplex(1000);
        let (answer, connections) = (self.answer, self.connections.clone());
        tokio::spawn(async move {
            let mut asked = [0; Target::SIZE];
            // The first one asks for nothing.
            if guest.read_exact(&mut asked).await.is_ok() {
                guest.write_u8(answer).await.unwrap();
                connections.send((Target::from_bytes(asked).unwrap(), guest)).unwrap();
            }
        });
        Ok(Connection { stream: Box::new(host), local_port: 1 })
    }

    fn listen(&self, _: u32) -> Option<Listener> {
        None
    }
}

fn log() -> Logger {
    Logger::root(Discard, o!())
}

/// A namespace whose loopback is up.
fn pod() -> Pod {
    let pod = Pod::new();
    pod.run("ip link set lo up");
    pod
}

/// Does something in the namespace.
async fn inside<T: Send + 'static>(
    pod: &Pod,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let path = pod.path.clone();
    let done = thread::run("inside", move || {
        namespace::enter(&path)?;
        Ok(act())
    });
    timeout(SOON, done).await.expect("soon").unwrap()
}

async fn connect(pod: &Pod, address: &str) -> io::Result<TcpStream> {
    let address: SocketAddr = address.parse().unwrap();
    let stream = inside(pod, move || TcpStream::connect_timeout(&address, SOON)).await?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    Ok(stream)
}

/// What a blocking stream says, while others go on.
async fn end_of(mut stream: TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let read = tokio::task::spawn_blocking(move || stream.read_to_end(&mut all).map(|_| all));
    read.await.unwrap()
}

/// The same for a new one, which may be reset before it is known that it was made.
async fn end_of_one(pod: &Pod) -> io::Result<Vec<u8>> {
    end_of(connect(pod, "127.0.0.1:80").await?).await
}

/// Offers the ports of `guest` until what is returned is dropped, from the moment on when the namespace has them.
async fn offered(pod: &Pod, guest: Arc<Guest>) -> JoinSet<()> {
    let mut offered = JoinSet::new();
    let namespace = Identity::at(&pod.path).unwrap();
    offered.spawn(run(pod.path.clone(), namespace, guest, log()));
    let is_open = async { while connect(pod, "127.0.0.1:9").await.is_err() {} };
    timeout(SOON, is_open).await.expect("soon");
    offered
}

/// The next one that is for `port`.
async fn arrival(
    arrivals: &mut UnboundedReceiver<(Target, DuplexStream)>,
    port: u16,
) -> (Target, DuplexStream) {
    loop {
        let next = timeout(SOON, arrivals.recv()).await.expect("soon").unwrap();
        if next.0.port == port {
            return next;
        }
    }
}

#[tokio::test]
async fn every_port_of_localhost_is_the_guests_and_nothing_else() {
    let pod = pod();
    pod.run("ip addr add 10.9.9.9/32 dev lo");
    let (guest, mut arrivals) = Guest::new(true, 0);
    let _offered = offered(&pod, guest).await;
    for (address, port, is_ipv6) in
        [("127.0.0.1:80", 80, false), ("127.0.0.1:65535", 65535, false), ("[::1]:8080", 8080, true)]
    {
        let mut client = connect(&pod, address).await.unwrap();
        let (target, mut guest) = arrival(&mut arrivals, port).await;
        assert_eq!(target, Target { is_ipv6, port });
        client.write_all(b"abc").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut came = [0; 7];
        guest.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"\0\x03abc\0\0");
        guest.write_all(b"\0\x02de\0\0").await.unwrap();
        assert_eq!(end_of(client).await.unwrap(), b"de");
    }
    for address in ["127.0.0.2:80", "10.9.9.9:80"] {
        let refused = connect(&pod, address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{address}");
    }
    let from_elsewhere = inside(&pod, || {
        let client = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        socket::bind(client.as_raw_fd(), &SockaddrIn::new(10, 9, 9, 9, 0))?;
        Ok(socket::connect(client.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 80))?)
    });
    assert_eq!(from_elsewhere.await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn without_ipv6_there_is_ipv4() {
    let pod = pod();
    pod.run("sysctl -q net.ipv6.conf.all.disable_ipv6=1");
    let (guest, mut arrivals) = Guest::new(true, 0);
    let _offered = offered(&pod, guest).await;
    let _client = connect(&pod, "127.0.0.1:80").await.unwrap();
    assert!(!arrival(&mut arrivals, 80).await.0.is_ipv6);
}

#[tokio::test]
async fn the_guest_is_before_who_listens_on_the_host() {
    let pod = pod();
    let _listens = inside(&pod, || TcpListener::bind("127.0.0.1:80")).await.unwrap();
    let (guest, mut arrivals) = Guest::new(true, 0);
    let _offered = offered(&pod, guest).await;
    let _client = connect(&pod, "127.0.0.1:80").await.unwrap();
    arrival(&mut arrivals, 80).await;
}

#[tokio::test]
async fn what_the_guest_refuses_is_reset() {
    let pod = pod();
    let (guest, _arrivals) = Guest::new(true, libc::ECONNREFUSED as u8);
    let _offered = offered(&pod, guest).await;
    assert_eq!(end_of_one(&pod).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn more_than_there_may_be_at_once_are_reset() {
    let pod = pod();
    let (guest, mut arrivals) = Guest::new(true, 0);
    let _offered = offered(&pod, guest).await;
    let mut all = Vec::new();
    for _ in 0..MOST {
        all.push((connect(&pod, "127.0.0.1:80").await.unwrap(), arrival(&mut arrivals, 80).await));
    }
    assert_eq!(end_of_one(&pod).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    drop(all.pop());
    // It is known to have ended a moment later.
    let is_served = async { while timeout(SOON / 20, end_of_one(&pod)).await.is_ok() {} };
    timeout(SOON, is_served).await.expect("soon");
    arrival(&mut arrivals, 80).await;
}

#[tokio::test]
async fn nothing_is_left_of_it() {
    let pod = pod();
    let (guest, mut arrivals) = Guest::new(true, 0);
    let offered = offered(&pod, guest).await;
    let client = connect(&pod, "127.0.0.1:80").await.unwrap();
    arrival(&mut arrivals, 80).await;
    drop(offered);
    tokio::task::yield_now().await;
    assert_eq!(end_of(client).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let refused = connect(&pod, "127.0.0.1:80").await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(pod.run("ss -Htan").trim(), "");
}

#[tokio::test]
async fn a_guest_that_forwards_nothing_is_asked_once_and_the_namespace_left_alone() {
    let pod = pod();
    let (guest, _arrivals) = Guest::new(false, 0);
    let namespace = Identity::at(&pod.path).unwrap();
    timeout(SOON, run(pod.path.clone(), namespace, guest.clone(), log())).await.expect("soon");
    assert_eq!(guest.asked.load(Ordering::Relaxed), 1);
    let refused = connect(&pod, "127.0.0.1:80").await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn the_hosts_own_namespace_is_left_alone() {
    // That of the first process may not be ours to look at.
    for own in
        ["/proc/self/ns/net", "/proc/1/ns/net"].into_iter().filter(|own| std::fs::metadata(own).is_ok())
    {
        let path = PathBuf::from(own);
        let itself = Identity::at(&path).unwrap();
        let refused = thread::run("host", move || Door::open(&path, itself)).await.err().expect("refused");
        assert!(matches!(refused, Error::FailedPrecondition(_)), "{refused}");
    }
}

#[tokio::test]
async fn another_namespace_at_the_same_place_is_left_alone() {
    let (pod, other) = (Pod::new(), Pod::new());
    let before = Identity::at(&other.path).unwrap();
    let path = pod.path.clone();
    let refused = thread::run("pod", move || Door::open(&path, before)).await.err().expect("refused");
    assert!(refused.to_string().ends_with("is another namespace by now"), "{refused}");
}

#[test]
fn a_step_that_the_kernel_refuses_is_named() {
    let (no_socket, no_namespace) =
        (std::fs::File::open("/dev/null").unwrap(), std::fs::File::open("/").unwrap());
    let why = lookup::give_localhost_to(&no_socket, None::<OwnedFd>, &no_namespace).unwrap_err();
    assert!(why.starts_with("a socket in a map: "), "{why}");
    let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let why = lookup::give_localhost_to(&v4, None::<OwnedFd>, &no_namespace).unwrap_err();
    assert!(why.starts_with("its attachment to the network namespace: "), "{why}");
}
