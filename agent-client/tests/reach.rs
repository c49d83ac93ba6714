//! The way to the agent.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    future::{Ready, pending},
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use agent_client::{AgentClient, Dialing, Error, Timeouts, reach};
use support::Peer;
use tokio::{
    io::{DuplexStream, duplex},
    sync::oneshot,
    time::Instant,
};

const LONG: Duration = Duration::from_secs(30);
/// A guest that gives no notice.
const NONE: Option<Ready<()>> = None;

/// A guest whose agent refuses its first connections.
#[derive(Clone, Default)]
struct Guest {
    deaf: u32,
    connections: Arc<AtomicU32>,
}

impl Guest {
    fn deaf_for(deaf: u32) -> Self {
        Self { deaf, ..Self::default() }
    }

    fn connections(&self) -> u32 {
        self.connections.load(Ordering::SeqCst)
    }

    async fn dial(self) -> io::Result<DuplexStream> {
        if self.connections.fetch_add(1, Ordering::SeqCst) < self.deaf {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens"));
        }
        let (host, guest) = duplex(4096);
        tokio::spawn(async move {
            let mut peer = Peer { stream: guest };
            peer.healthy().await;
            pending::<()>().await;
        });
        Ok(host)
    }

    async fn reached(&self, within: Duration) -> Result<AgentClient, Error> {
        reach(&|| Box::pin(self.clone().dial()), NONE, Timeouts::default(), within).await
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_serves_is_reached_at_the_first_attempt() {
    let guest = Guest::default();
    guest.reached(LONG).await.unwrap();
    assert_eq!(guest.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_a_fresh_connection() {
    let guest = Guest::deaf_for(3);
    guest.reached(LONG).await.unwrap();
    assert_eq!(guest.connections(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_notice_is_followed_at_once_though_an_attempt_hangs() {
    let guest = Guest::default();
    let asked = Arc::new(AtomicU32::new(0));
    let (tell, told) = oneshot::channel();
    let dial = || -> Dialing<'_, DuplexStream> {
        // The first one meets a driver that loses it.
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            return Box::pin(pending());
        }
        Box::pin(guest.clone().dial())
    };
    let begun = Instant::now();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        tell.send(()).unwrap();
    });
    let notice = async { told.await.unwrap() };
    reach(&dial, Some(notice), Timeouts::default(), LONG).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 1);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_given_up_without_a_notice_too() {
    let asked = AtomicU32::new(0);
    let guest = Guest::default();
    let dial = || -> Dialing<'_, DuplexStream> {
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Box::pin(pending()),
            _ => Box::pin(guest.clone().dial()),
        }
    };
    reach(&dial, NONE, Timeouts::default(), LONG).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn an_agent_out_of_reach_is_reported_with_the_last_reason_at_the_deadline() {
    let guest = Guest::deaf_for(u32::MAX);
    let begun = Instant::now();
    let error = guest.reached(Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 2);
    let text = error.to_string();
    let Error::Unreachable { attempts, .. } = error else { panic!("{text}") };
    assert!(attempts > 10 && attempts == guest.connections(), "{attempts} attempts");
    assert!(text.contains("2s") && text.contains("nobody listens") && text.contains("console"), "{text}");
}
