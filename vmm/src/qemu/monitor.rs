//! The conversation with QEMU while its guest runs, and the ear for a guest that will never run again.

use slog::Logger;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::dump::{self, Facts};
use super::qmp::{Event, Qmp, QueryStatus};
use crate::exit::{self, How, VmExit, Who};
use crate::spec::PanicDump;

/// States a guest does not come back from by itself. QEMU lives on in them and nothing else tells: a KVM that cannot
/// run the guest's kernel, for one, ends in the first.
pub(super) const STUCK: [&str; 4] = ["internal-error", "guest-panicked", "io-error", "watchdog"];

/// The one of them that is the guest's own doing.
const PANICKED: &str = "guest-panicked";

/// QMP, and a task that listens to it.
#[derive(Debug)]
pub(crate) struct Monitor {
    qmp: Qmp,
    listener: JoinHandle<()>,
    /// Whether the memory of a guest that panicked is being kept.
    keeping: watch::Receiver<bool>,
}

/// What a listener may have to do and tell.
pub(crate) struct Duties {
    /// Where an end is published.
    pub(crate) first_exit: watch::Sender<Option<VmExit>>,
    /// What becomes of the memory of a guest that panicked.
    pub(crate) dump: Option<(PanicDump, Facts)>,
    pub(crate) log: Logger,
}

impl Monitor {
    /// Publishes it when the guest gets stuck.
    pub(crate) fn watch(qmp: Qmp, duties: Duties) -> Monitor {
        let (keeps, keeping) = watch::channel(false);
        let events = qmp.events();
        let listener = tokio::spawn(listen(qmp.clone(), events, duties, keeps));
        Monitor { qmp, listener, keeping }
    }

    pub(crate) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Returns when QEMU is not needed any more for the memory of a guest that panicked: at once for most guests.
    pub(crate) async fn has_kept_memory(&self) {
        let mut keeping = self.keeping.clone();
        // A listener that is gone keeps nothing.
        let _ = timeout(dump::PATIENCE, keeping.wait_for(|keeping| !keeping)).await;
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn listen(qmp: Qmp, mut events: Receiver<Event>, duties: Duties, keeps: watch::Sender<bool>) {
    let Some(state) = stuck(&qmp, &mut events).await else { return };
    let dump = duties.dump.filter(|_| state == PANICKED);
    // Before anybody learns of the end, and ends QEMU.
    keeps.send_replace(dump.is_some());
    let exit = VmExit { who: Who::Qemu, how: How::Stuck(state), last_words: String::new() };
    exit::publish(&duties.first_exit, exit);
    if let Some((dump, facts)) = dump {
        dump::keep(&qmp, &dump, &facts, &duties.log).await;
        keeps.send_replace(false);
    }
}

/// The state a guest is in that it does not come back from; nothing when QEMU is gone first.
async fn stuck(qmp: &Qmp, events: &mut Receiver<Event>) -> Option<String> {
    loop {
        match events.recv().await {
            Ok(event) if event.name == "STOP" || event.name == "GUEST_PANICKED" => {}
            // One of the missed ones may have been of interest.
            Err(RecvError::Lagged(_)) => {}
            Ok(_) => continue,
            Err(RecvError::Closed) => return None,
        }
        // Whoever pauses the guest stops it too, so the event alone says nothing.
        let Ok(now) = qmp.execute(QueryStatus {}).await else { continue };
        if STUCK.contains(&now.status.as_str()) {
            return Some(now.status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::qmp::tests::{Peer, connected};
    use crate::record::RECORD;
    use slog::{Discard, o};
    use std::time::Duration;

    async fn watched() -> (Monitor, Peer, watch::Receiver<Option<VmExit>>) {
        watched_with(None).await
    }

    async fn watched_with(
        dump: Option<(PanicDump, Facts)>,
    ) -> (Monitor, Peer, watch::Receiver<Option<VmExit>>) {
        let (qmp, peer) = connected(Duration::from_secs(5)).await;
        let (first_exit, exit) = watch::channel(None);
        let duties = Duties { first_exit, dump, log: Logger::root(Discard, o!()) };
        (Monitor::watch(qmp, duties), peer, exit)
    }

    #[tokio::test]
    async fn b6_a_panic_is_an_exit_at_once_and_qemu_is_needed_until_the_memory_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let dump = PanicDump { directory: dir.path().to_owned(), paging: false };
        std::fs::write(dir.path().join(RECORD), "").unwrap();
        let facts =
            Facts { version: "7.2.0".into(), configuration: "[]".into(), run_dir: dir.path().to_owned() };
        let (monitor, mut peer, mut exit) = watched_with(Some((dump, facts))).await;
        monitor.has_kept_memory().await;
        peer.say(r#"{"event": "GUEST_PANICKED", "data": {"action": "pause"}}"#).await;
        peer.answer(r#"{"status": "guest-panicked", "running": false}"#).await;
        let exit = exit.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert_eq!(exit.to_string(), "the guest's kernel panicked");
        let kept = monitor.has_kept_memory();
        tokio::pin!(kept);
        tokio::select! {
            () = &mut kept => panic!("QEMU could be ended before its memory was kept"),
            () = peer.answer(r#"{"base-memory": 1048576}"#) => {}
        }
        let rest = async {
            peer.answer("{}").await;
            peer.answer("{}").await;
        };
        tokio::join!(kept, rest);
    }

    #[tokio::test]
    async fn b5_r06_a_guest_in_a_state_without_return_is_an_exit() {
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
