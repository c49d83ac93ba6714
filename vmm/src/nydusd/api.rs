//! What `nydusd` can be asked: version 1 of its administration API, JSON by HTTP on a Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::http::{self, Answer, Failure};
use crate::error::NydusdError;

/// How long the daemon has to come up, and then for each answer. On a host under load seconds are not unusual.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to find it up. Its socket has a name before anybody listens, so there is no event to wait for.
const PACE: Duration = Duration::from_millis(10);
/// How much of an answer goes into an error, in characters.
const QUOTED: usize = 300;

const STATE: &str = "/api/v1/daemon";

/// The daemon's API.
#[derive(Debug)]
pub(super) struct Api {
    socket: PathBuf,
    patience: Duration,
}

#[derive(Deserialize)]
struct Daemon {
    state: String,
}

/// What the daemon says of a request that it did not carry out.
#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Api {
    pub(super) fn at(socket: PathBuf) -> Api {
        Api { socket, patience: PATIENCE }
    }

    /// Waits until the daemon serves.
    pub(super) async fn running(&self) -> Result<(), NydusdError> {
        let asked = format!("GET {STATE}");
        let deadline = Instant::now() + self.patience;
        let mut last = "it does not answer".to_owned();
        loop {
            match timeout_at(deadline, self.state(&asked)).await {
                Ok(Ok(state)) if state == "RUNNING" => return Ok(()),
                Ok(Ok(state)) => last = format!("its state is {state:?}"),
                Ok(Err(NydusdError::Io { source, .. })) if is_not_up(&source) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(NydusdError::Timeout { asked, after: self.patience, last });
            }
            sleep(PACE).await;
        }
    }

    async fn state(&self, asked: &str) -> Result<String, NydusdError> {
        let answer = self.ask("GET", STATE, "").await?;
        let daemon: Daemon = serde_json::from_slice(&answer.body)
            .map_err(|error| NydusdError::Protocol { asked: asked.to_owned(), what: error.to_string() })?;
        Ok(quoted(&daemon.state))
    }

    /// Has the daemon pass `source` through to the guest, at `mount_point` below the root of what it serves.
    pub(super) async fn mount_passthrough(
        &self,
        mount_point: &str,
        source: &Path,
    ) -> Result<(), NydusdError> {
        let target = format!("/api/v1/mount?mountpoint={mount_point}");
        let body = json!({"fs_type": "passthrough_fs", "source": source.to_string_lossy(), "config": ""});
        self.ask("POST", &target, &body.to_string()).await.map(drop)
    }

    /// The answer, which is one of success.
    async fn ask(&self, method: &str, target: &str, body: &str) -> Result<Answer, NydusdError> {
        let asked = format!("{method} {target}");
        let Ok(answer) = timeout(self.patience, http::ask(&self.socket, method, target, body)).await else {
            let last = "it does not answer".to_owned();
            return Err(NydusdError::Timeout { asked, after: self.patience, last });
        };
        match answer {
            Ok(answer) if (200..300).contains(&answer.status) => Ok(answer),
            Ok(Answer { status, body }) => Err(NydusdError::Refused { asked, status, words: words(&body) }),
            Err(Failure::Io(source)) => Err(NydusdError::Io { asked, source }),
            Err(Failure::Nonsense(what)) => Err(NydusdError::Protocol { asked, what }),
        }
    }
}

fn is_not_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn words(body: &[u8]) -> String {
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => quoted(&refusal.message),
        Err(_) => quoted(&String::from_utf8_lossy(body)),
    }
}

/// Foreign text, on one line and not too long of it.
fn quoted(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED).collect()
}

#[cfg(test)]
mod tests;
