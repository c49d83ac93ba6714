//! QMP with a peer that follows a script.

use std::time::Duration;

use slog::{Logger, o};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Cont, Qmp, QueryStatus, Quit, Stop};
use crate::error::QmpError;

const HELLO: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}"#;

/// QEMU's side.
pub(crate) struct Peer(BufReader<UnixStream>);

impl Peer {
    /// What is asked next.
    pub(crate) async fn hear(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.0.write_all(format!("{text}\r\n").as_bytes()).await.unwrap();
    }

    pub(crate) async fn answer(&mut self, returned: &str) {
        let id = self.hear().await["id"].clone();
        self.say(&format!(r#"{{"return": {returned}, "id": {id}}}"#)).await;
    }
}

pub(crate) async fn connected(patience: Duration) -> (Qmp, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer(BufReader::new(theirs));
    peer.say(HELLO).await;
    let negotiation = Qmp::negotiate(ours, patience, Logger::root(slog::Discard, o!()));
    let (result, ()) = tokio::join!(negotiation, peer.answer("{}"));
    let (qmp, version) = result.unwrap();
    assert_eq!(version.to_string(), "7.2.22");
    (qmp, peer)
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn b4_answers_find_their_callers_in_any_order() {
    let (qmp, mut peer) = connected(SOON).await;
    let script = async {
        let (first, second) = (peer.hear().await, peer.hear().await);
        assert_eq!((&first["execute"], &second["execute"]), (&"query-status".into(), &"cont".into()));
        peer.say(r#"{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}"#).await;
        peer.say(&format!(r#"{{"return": {{}}, "id": {}}}"#, second["id"])).await;
        peer.say(&format!(
            r#"{{"return": {{"status": "running", "running": true}}, "id": {}}}"#,
            first["id"]
        ))
        .await;
    };
    let mut events = qmp.events();
    let (status, done, ()) = tokio::join!(qmp.execute(QueryStatus {}), qmp.execute(Cont {}), script);
    assert_eq!(status.unwrap().status, "running");
    done.unwrap();
    assert_eq!(events.recv().await.unwrap().name, "RESUME");
}

#[tokio::test]
async fn a_refusal_keeps_qemus_words() {
    let (qmp, mut peer) = connected(SOON).await;
    let script = async {
        let id = peer.hear().await["id"].clone();
        peer.say(&format!(r#"{{"error": {{"class": "GenericError", "desc": "no"}}, "id": {id}}}"#)).await;
    };
    let (refused, ()) = tokio::join!(qmp.execute(Stop {}), script);
    assert_eq!(refused.unwrap_err().to_string(), "qemu refused stop: no (GenericError)");
}

#[tokio::test]
async fn a_late_answer_is_dropped_and_the_next_call_gets_its_own() {
    let (qmp, mut peer) = connected(SOON).await;
    let late = qmp.execute_within(Stop {}, Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(late, QmpError::Timeout { .. }), "{late}");
    let script = async {
        peer.answer("{}").await;
        peer.answer(r#"{"status": "paused"}"#).await;
    };
    let (status, ()) = tokio::join!(qmp.execute(QueryStatus {}), script);
    assert_eq!(status.unwrap().status, "paused");
}

#[tokio::test]
async fn whoever_waits_learns_that_qemu_is_gone() {
    let (qmp, mut peer) = connected(SOON).await;
    // Closing with something unread ends the other side in a reset rather than an end of file.
    let script = async {
        peer.0.fill_buf().await.unwrap();
        drop(peer);
    };
    let (gone, ()) = tokio::join!(qmp.execute(Quit {}), script);
    assert_eq!(gone.unwrap_err(), QmpError::Gone { command: "quit".into() });
    assert_eq!(qmp.execute(Quit {}).await.unwrap_err(), QmpError::Gone { command: "quit".into() });
}

#[tokio::test]
async fn a_line_without_end_ends_the_conversation() {
    let (qmp, mut peer) = connected(SOON).await;
    let script = async {
        let block = vec![b' '; 1 << 16];
        while peer.0.write_all(&block).await.is_ok() {}
    };
    let (gone, ()) = tokio::join!(qmp.execute(Quit {}), script);
    assert!(matches!(gone.unwrap_err(), QmpError::Gone { .. }));
}

#[tokio::test]
async fn what_is_not_json_is_passed_over() {
    let (qmp, mut peer) = connected(SOON).await;
    let script = async {
        peer.say("nonsense").await;
        peer.say(r#"{"neither": 1}"#).await;
        peer.answer("{}").await;
    };
    let (done, ()) = tokio::join!(qmp.execute(Cont {}), script);
    done.unwrap();
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_not_waited_for_longer_than_asked() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let log = Logger::root(slog::Discard, o!());
    let error = Qmp::negotiate(ours, Duration::from_millis(20), log).await.unwrap_err();
    assert!(matches!(error, QmpError::Timeout { .. }), "{error}");
}
