//! Connections to ports of the pod's own loopback, for whoever asks on the host: `kubectl port-forward`.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use agent_protocol::forward::{Carried, Target};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};

/// Most connections at once. The shim asks for no more than half of them.
const MOST: usize = 512;

/// How long the host may take to say what it wants.
const ASKING: Duration = Duration::from_secs(10);

/// How long a server in the pod may take. It is refused at once where nobody listens, and only waits where a server has
/// more to do than it can.
const CONNECTING: Duration = Duration::from_secs(10);

/// The connections that are forwarded.
pub(crate) struct Forwarded {
    places: Arc<Semaphore>,
}

impl Forwarded {
    pub(crate) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(MOST)) }
    }

    /// Serves one more of the host's, beside the others.
    pub(crate) fn add(&self, host: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return ::log::warn!("{MOST} connections are forwarded: another one is hung up");
        };
        tokio::spawn(async move {
            if let Err(why) = serve(host).await {
                ::log::debug!("a forwarded connection was broken off: {why}");
            }
            drop(place);
        });
    }
}

async fn serve(mut host: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut asked = [0; Target::SIZE];
    match timeout(ASKING, host.read_exact(&mut asked)).await {
        Ok(Err(end)) if end.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        read => read??,
    };
    let target = Target::from_bytes(asked)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{asked:?} is no target")))?;
    match connect(target.addresses()).await {
        Ok(server) => {
            let server = Carried::new(server)?;
            host.write_u8(0).await?;
            server.over(host).await
        }
        Err(why) => {
            ::log::debug!("port {}: {why}", target.port);
            host.write_u8(number(&why)).await
        }
    }
}

/// Connects to the first of the addresses that somebody listens on.
async fn connect(addresses: [SocketAddr; 2]) -> io::Result<TcpStream> {
    let mut refused = None;
    for address in addresses {
        let late = |_| io::Error::from_raw_os_error(libc::ETIMEDOUT);
        match timeout(CONNECTING, TcpStream::connect(address)).await.unwrap_or_else(|end| Err(late(end))) {
            Ok(stream) if stream.local_addr()? != address => return Ok(stream),
            // The kernel has chosen that port for the client's end, too, and connected it with itself.
            Ok(_) => refused = refused.or(Some(io::Error::from_raw_os_error(libc::ECONNREFUSED))),
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

/// What the host is told; never 0.
fn number(why: &io::Error) -> u8 {
    let number = why.raw_os_error().and_then(|number| u8::try_from(number).ok());
    number.filter(|number| *number != 0).unwrap_or(libc::ECONNABORTED as u8)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use tokio::{
        io::{DuplexStream, duplex},
        net::{TcpListener, TcpSocket},
    };

    use super::*;

    /// What the host has when it has asked for that.
    async fn ask(bytes: &[u8]) -> DuplexStream {
        let (mut host, guest) = duplex(100);
        Forwarded::new().add(guest);
        host.write_all(bytes).await.unwrap();
        host
    }

    async fn answer(target: Target) -> (DuplexStream, u8) {
        let mut host = ask(&target.to_bytes()).await;
        let answer = host.read_u8().await.unwrap();
        (host, answer)
    }

    #[tokio::test]
    async fn a_server_is_reached_by_whichever_family_it_listens_on() {
        for ip in [Ipv4Addr::LOCALHOST.into(), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            for is_ipv6 in [false, true] {
                let server = TcpListener::bind((ip, 0)).await.unwrap();
                let port = server.local_addr().unwrap().port();
                let (mut host, answer) = answer(Target { is_ipv6, port }).await;
                assert_eq!(answer, 0);
                let (mut server, _) = server.accept().await.unwrap();
                host.write_all(b"\0\x03abc").await.unwrap();
                let mut came = [0; 3];
                server.read_exact(&mut came).await.unwrap();
                assert_eq!(&came, b"abc");
            }
        }
    }

    #[tokio::test]
    async fn a_port_nobody_listens_on_is_refused_and_hung_up() {
        // Nobody else has it, either.
        let held = TcpSocket::new_v4().unwrap();
        held.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let port = held.local_addr().unwrap().port();
        let (mut host, answer) = answer(Target { is_ipv6: false, port }).await;
        assert_eq!(i32::from(answer), libc::ECONNREFUSED);
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_no_target_is_hung_up() {
        let mut host = ask(&[9, 0, 80]).await;
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_asks_for_nothing_is_hung_up() {
        let mut host = ask(&[4, 0]).await;
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn connections_are_bounded() {
        let forwarded = Forwarded::new();
        let add = || {
            let (host, guest) = duplex(100);
            forwarded.add(guest);
            host
        };
        let mut all: Vec<DuplexStream> = (0..MOST).map(|_| add()).collect();
        assert_eq!(add().read(&mut [0]).await.unwrap(), 0);
        drop(all.pop());
        drop(forwarded.places.acquire().await.unwrap());
        add().write_all(&[4, 0]).await.unwrap();
        assert_eq!(forwarded.places.available_permits(), 0);
    }

    #[test]
    fn a_refusal_has_a_number() {
        assert_eq!(i32::from(number(&io::Error::from_raw_os_error(libc::EHOSTUNREACH))), libc::EHOSTUNREACH);
        assert_eq!(i32::from(number(&io::ErrorKind::Other.into())), libc::ECONNABORTED);
    }
}
