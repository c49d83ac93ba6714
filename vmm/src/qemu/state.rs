//! The state of a machine but for its memory, which is a file already: how it is saved and loaded.
//!
//! This is QEMU's migration, to a file instead of another host. With `x-ignore-shared` memory that is in a file shared
//! with others is left out of it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::timeout;

use super::qmp::{
    Capability, Event, Getfd, Migrate, MigrateIncoming, MigrateSetCapabilities, Qmp, QueryMigrate,
};
use crate::error::QmpError;

/// How long either may take. It is a few MiB.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the file is handed over as.
const STATE: &str = "state";

/// Saves the state of a machine that is paused.
pub(super) async fn save(qmp: &Qmp, file: File) -> Result<(), QmpError> {
    let mut events = prepare(qmp, file).await?;
    qmp.execute(Migrate { uri: format!("fd:{STATE}") }).await?;
    done(qmp, &mut events, "migrate").await
}

/// Loads the state of a machine that waits for it.
pub(super) async fn load(qmp: &Qmp, file: File) -> Result<(), QmpError> {
    let mut events = prepare(qmp, file).await?;
    qmp.execute(MigrateIncoming { uri: format!("fd:{STATE}") }).await?;
    done(qmp, &mut events, "migrate-incoming").await
}

async fn prepare(qmp: &Qmp, file: File) -> Result<Receiver<Event>, QmpError> {
    let capabilities = ["x-ignore-shared", "events"].map(Capability::on).to_vec();
    qmp.execute(MigrateSetCapabilities { capabilities }).await?;
    qmp.execute_with(Getfd { fdname: STATE.to_owned() }, OwnedFd::from(file)).await?;
    Ok(qmp.events())
}

/// Waits until QEMU tells that it is done.
async fn done(qmp: &Qmp, events: &mut Receiver<Event>, command: &'static str) -> Result<(), QmpError> {
    match timeout(PATIENCE, last(qmp, events, command)).await {
        Ok(result) => result,
        Err(_) => Err(QmpError::Timeout { command: command.to_owned(), after: PATIENCE }),
    }
}

async fn last(qmp: &Qmp, events: &mut Receiver<Event>, command: &'static str) -> Result<(), QmpError> {
    loop {
        let status = match events.recv().await {
            Ok(event) if event.name == "MIGRATION" => {
                event.data["status"].as_str().unwrap_or_default().to_owned()
            }
            Ok(_) => continue,
            // One of the missed ones may have been it.
            Err(RecvError::Lagged(_)) => qmp.execute(QueryMigrate {}).await?.status,
            Err(RecvError::Closed) => return Err(QmpError::Gone { command: command.to_owned() }),
        };
        match status.as_str() {
            "completed" => return Ok(()),
            "failed" | "cancelled" => {
                let why = qmp.execute(QueryMigrate {}).await.ok().and_then(|now| now.error_desc);
                let desc = why.unwrap_or_else(|| format!("it {status}"));
                return Err(QmpError::Refused { command: command.to_owned(), class: status, desc });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::qemu::qmp::tests::{Peer, connected};

    async fn expect(peer: &mut Peer, command: &str, arguments: serde_json::Value) {
        let asked = peer.hear().await;
        assert_eq!((&asked["execute"], &asked["arguments"]), (&json!(command), &arguments));
        peer.say(&json!({"return": {}, "id": asked["id"]}).to_string()).await;
    }

    async fn prepared(peer: &mut Peer) {
        let capabilities = json!({"capabilities": [
            {"capability": "x-ignore-shared", "state": true},
            {"capability": "events", "state": true},
        ]});
        expect(peer, "migrate-set-capabilities", capabilities).await;
        expect(peer, "getfd", json!({"fdname": "state"})).await;
    }

    async fn told(peer: &mut Peer, status: &str) {
        peer.say(&json!({"event": "MIGRATION", "data": {"status": status}}).to_string()).await;
    }

    #[tokio::test]
    async fn b17_a_state_is_saved_by_descriptor_without_the_memory_once_qemu_says_so() {
        let (qmp, mut peer) = connected(Duration::from_secs(5)).await;
        let script = async {
            prepared(&mut peer).await;
            expect(&mut peer, "migrate", json!({"uri": "fd:state"})).await;
            told(&mut peer, "setup").await;
            told(&mut peer, "completed").await;
        };
        let (saved, ()) = tokio::join!(save(&qmp, tempfile::tempfile().unwrap()), script);
        saved.unwrap();
    }

    #[tokio::test]
    async fn a41_a_state_that_does_not_fit_is_an_error_with_qemus_reason() {
        let (qmp, mut peer) = connected(Duration::from_secs(5)).await;
        let script = async {
            prepared(&mut peer).await;
            expect(&mut peer, "migrate-incoming", json!({"uri": "fd:state"})).await;
            told(&mut peer, "failed").await;
            peer.answer(r#"{"status": "failed", "error-desc": "Unknown ramblock"}"#).await;
        };
        let (loaded, ()) = tokio::join!(load(&qmp, tempfile::tempfile().unwrap()), script);
        let error = loaded.unwrap_err().to_string();
        assert_eq!(error, "qemu refused migrate-incoming: Unknown ramblock (failed)");
    }
}
