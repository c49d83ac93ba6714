//! Connections that the host has made to be streams of processes, until a request names them.

use std::{
    collections::VecDeque,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::Instant,
};

use crate::error::Error;

/// Most connections that wait to be claimed; older ones go first.
const MAX_UNCLAIMED: usize = 256;

/// How long a connection waits to be claimed. A host claims it with its next request.
const UNCLAIMED: Duration = Duration::from_secs(30);

/// How long a claim waits for its connection, which the host has made before: only its being accepted may be late.
const CLAIM: Duration = Duration::from_secs(5);

/// What carries a stream.
pub(crate) trait Connection: AsyncRead + AsyncWrite + AsFd + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + AsFd + Unpin + Send> Connection for T {}

/// The streams of a process that do not go by calls. Dropping them hangs up.
#[derive(Default)]
pub(crate) struct Connections {
    pub(super) stdin: Option<Box<dyn Connection>>,
    pub(super) stdout: Option<Box<dyn Connection>>,
    pub(super) stderr: Option<Box<dyn Connection>>,
}

/// The host's ports by which a request names its connections; 0 for a stream that has none.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) stdin: u32,
    pub(crate) stdout: u32,
    pub(crate) stderr: u32,
}

/// The connections nobody has claimed yet, in the order they came.
#[derive(Default)]
pub(crate) struct Arrivals {
    unclaimed: Mutex<VecDeque<Unclaimed>>,
    arrived: Notify,
}

struct Unclaimed {
    port: u32,
    since: Instant,
    connection: Box<dyn Connection>,
}

impl Arrivals {
    /// None yet, on the event loop this is called in.
    pub(crate) fn start() -> Arc<Self> {
        let arrivals = Arc::new(Self::default());
        let this = Arc::clone(&arrivals);
        tokio::spawn(async move { this.drop_expired().await });
        arrivals
    }

    /// Takes in a connection from the host's `port`.
    pub(crate) fn add(&self, port: u32, connection: Box<dyn Connection>) {
        let mut unclaimed = self.unclaimed();
        // The host uses a port again only when it is done with the earlier connection.
        unclaimed.retain(|earlier| earlier.port != port);
        if unclaimed.len() >= MAX_UNCLAIMED {
            ::log::warn!(
                "{MAX_UNCLAIMED} connections for streams that no request has named: the oldest is dropped"
            );
            unclaimed.pop_front();
        }
        unclaimed.push_back(Unclaimed { port, since: Instant::now(), connection });
        drop(unclaimed);
        self.arrived.notify_waiters();
    }

    /// The connections from `ports`; waits a little for those that have yet to arrive.
    ///
    /// # Errors
    ///
    /// [`Error::State`] if one does not come; the others are hung up then.
    pub(crate) async fn claim(&self, ports: Ports) -> Result<Connections, Error> {
        let (stdin, stdout, stderr) = tokio::try_join!(
            self.claim_one("stdin_port", ports.stdin),
            self.claim_one("stdout_port", ports.stdout),
            self.claim_one("stderr_port", ports.stderr),
        )?;
        Ok(Connections { stdin, stdout, stderr })
    }

    async fn claim_one(&self, field: &str, port: u32) -> Result<Option<Box<dyn Connection>>, Error> {
        if port == 0 {
            return Ok(None);
        }
        let missing =
            |_| Error::state(format!("{field}: no connection from port {port} came within {CLAIM:?}"));
        tokio::time::timeout(CLAIM, self.wait_for(port)).await.map(Some).map_err(missing)
    }

    async fn wait_for(&self, port: u32) -> Box<dyn Connection> {
        loop {
            let arrived = self.arrived.notified();
            if let Some(connection) = self.take(port) {
                return connection;
            }
            arrived.await;
        }
    }

    fn take(&self, port: u32) -> Option<Box<dyn Connection>> {
        let mut unclaimed = self.unclaimed();
        let index = unclaimed.iter().position(|waiting| waiting.port == port)?;
        unclaimed.remove(index).map(|waiting| waiting.connection)
    }

    async fn drop_expired(&self) {
        loop {
            let arrived = self.arrived.notified();
            let oldest = self.unclaimed().front().map(|waiting| waiting.since);
            match oldest {
                Some(since) => tokio::time::sleep_until(since + UNCLAIMED).await,
                None => arrived.await,
            }
            let now = Instant::now();
            self.unclaimed().retain(|waiting| now < waiting.since + UNCLAIMED);
        }
    }

    fn unclaimed(&self) -> MutexGuard<'_, VecDeque<Unclaimed>> {
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::*;

    const NONE: Ports = Ports { stdin: 0, stdout: 0, stderr: 0 };

    fn arrive(arrivals: &Arrivals, port: u32) -> UnixStream {
        let (host, guest) = UnixStream::pair().unwrap();
        arrivals.add(port, Box::new(guest));
        host
    }

    async fn is_hung_up(mut host: UnixStream) -> bool {
        host.write_all(b"x").await.is_err()
    }

    #[tokio::test]
    async fn each_stream_gets_the_connection_it_names() {
        let arrivals = Arrivals::start();
        let mut hosts = [7, 8, 9].map(|port| arrive(&arrivals, port));
        let claimed = arrivals.claim(Ports { stdin: 9, stdout: 7, stderr: 0 }).await.unwrap();
        assert!(claimed.stderr.is_none());
        for (mut connection, host) in [(claimed.stdin.unwrap(), 2), (claimed.stdout.unwrap(), 0)] {
            hosts[host].write_all(&[host as u8]).await.unwrap();
            assert_eq!(connection.read_u8().await.unwrap(), host as u8);
        }
        assert!(arrivals.take(8).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_waits_for_its_connection() {
        let arrivals = Arrivals::start();
        let claim = arrivals.claim(Ports { stdout: 7, ..NONE });
        let late = async {
            tokio::time::sleep(CLAIM / 2).await;
            arrive(&arrivals, 6);
            arrive(&arrivals, 7)
        };
        let (claimed, _host) = tokio::join!(claim, late);
        assert!(claimed.unwrap().stdout.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_fails_says_which_and_hangs_up_the_others() {
        let arrivals = Arrivals::start();
        let host = arrive(&arrivals, 7);
        let Err(error) = arrivals.claim(Ports { stdin: 7, stderr: 8, ..NONE }).await else {
            panic!("claimed")
        };
        assert_eq!(error.to_string(), "stderr_port: no connection from port 8 came within 5s");
        assert!(is_hung_up(host).await);
    }

    #[tokio::test(start_paused = true)]
    async fn unclaimed_connections_expire() {
        let arrivals = Arrivals::start();
        let first = arrive(&arrivals, 7);
        tokio::time::sleep(UNCLAIMED / 2).await;
        let _second = arrive(&arrivals, 8);
        tokio::time::sleep(UNCLAIMED / 2 + Duration::from_secs(1)).await;
        assert!(is_hung_up(first).await);
        assert!(arrivals.take(8).is_some());
        let third = arrive(&arrivals, 9);
        tokio::time::sleep(UNCLAIMED + Duration::from_secs(1)).await;
        assert!(is_hung_up(third).await);
    }

    #[tokio::test]
    async fn unclaimed_connections_are_bounded() {
        let arrivals = Arrivals::start();
        let oldest = arrive(&arrivals, 1);
        let _others: Vec<UnixStream> = (2..=257).map(|port| arrive(&arrivals, port)).collect();
        assert!(is_hung_up(oldest).await);
        assert_eq!(arrivals.unclaimed().len(), MAX_UNCLAIMED);
    }

    #[tokio::test]
    async fn the_newest_connection_of_a_port_counts() {
        let arrivals = Arrivals::start();
        let stale = arrive(&arrivals, 7);
        let mut host = arrive(&arrivals, 7);
        assert!(is_hung_up(stale).await);
        let mut connection = arrivals.claim(Ports { stdout: 7, ..NONE }).await.unwrap().stdout.unwrap();
        connection.write_all(b"x").await.unwrap();
        assert_eq!(host.read_u8().await.unwrap(), b'x');
    }
}
