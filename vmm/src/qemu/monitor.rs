//! The conversation with QEMU while its guest runs, and the ear for a guest that will never run again.

use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::qmp::{Event, Qmp, QueryStatus};
use crate::exit::{self, How, VmExit, Who};

/// States a guest does not come back from by itself. QEMU lives on in them and nothing else tells: a KVM that cannot
/// run the guest's kernel, for one, ends in the first.
pub(super) const STUCK: [&str; 4] = ["internal-error", "guest-panicked", "io-error", "watchdog"];

/// QMP, and a task that listens to it.
#[derive(Debug)]
pub(crate) struct Monitor {
    qmp: Qmp,
    listener: JoinHandle<()>,
}

impl Monitor {
    /// Publishes on `first_exit` when the guest gets stuck.
    pub(crate) fn watch(qmp: Qmp, first_exit: watch::Sender<Option<VmExit>>) -> Monitor {
        let events = qmp.events();
        let listener = tokio::spawn(listen(qmp.clone(), events, first_exit));
        Monitor { qmp, listener }
    }

    pub(crate) fn qmp(&self) -> &Qmp {
        &self.qmp
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn listen(qmp: Qmp, mut events: Receiver<Event>, first_exit: watch::Sender<Option<VmExit>>) {
    loop {
        match events.recv().await {
            Ok(event) if event.name == "STOP" || event.name == "GUEST_PANICKED" => {}
            // One of the missed ones may have been of interest.
            Err(RecvError::Lagged(_)) => {}
            Ok(_) => continue,
            Err(RecvError::Closed) => return,
        }
        // Whoever pauses the guest stops it too, so the event alone says nothing.
        let Ok(now) = qmp.execute(QueryStatus {}).await else { continue };
        if STUCK.contains(&now.status.as_str()) {
            let how = How::Stuck(now.status);
            return exit::publish(&first_exit, VmExit { who: Who::Qemu, how, last_words: String::new() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::qmp::tests::{Peer, connected};
    use std::time::Duration;

    async fn watched() -> (Monitor, Peer, watch::Receiver<Option<VmExit>>) {
        let (qmp, peer) = connected(Duration::from_secs(5)).await;
        let (first, exit) = watch::channel(None);
        (Monitor::watch(qmp, first), peer, exit)
    }

    #[tokio::test]
    async fn r06_a_guest_in_a_state_without_return_is_an_exit() {
        let (_monitor, mut peer, mut exit) = watched().await;
        peer.say(r#"{"event": "STOP"}"#).await;
        peer.answer(r#"{"status": "internal-error", "running": false}"#).await;
        let exit = exit.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert_eq!(exit.to_string(), "qemu is stuck in state internal-error");
    }

    #[tokio::test]
    async fn a_guest_that_was_paused_is_not() {
        let (_monitor, mut peer, exit) = watched().await;
        peer.say(r#"{"event": "STOP"}"#).await;
        peer.answer(r#"{"status": "paused", "running": false}"#).await;
        peer.say(r#"{"event": "GUEST_PANICKED"}"#).await;
        // That the second event is asked about shows that the first one was dealt with.
        peer.answer(r#"{"status": "running", "running": true}"#).await;
        assert!(exit.borrow().is_none());
    }
}
