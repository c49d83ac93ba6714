//! Calls that make much, whose callers may not wait for the answer.

use std::future::Future;

use slog::{Logger, warn};
use tokio::sync::Notify;

/// The Creates of a shim, and that one was given up.
pub(super) struct Attempts {
    given_up: Notify,
    log: Logger,
}

impl Attempts {
    pub(super) fn new(log: Logger) -> Attempts {
        Attempts { given_up: Notify::new(), log }
    }

    /// Carries a Create of `id` out, and tells when it is dropped: ttrpc does that at its deadline, and when the
    /// connection that it came by is closed.
    pub(super) async fn hear<T>(&self, id: &str, create: impl Future<Output = T>) -> T {
        let unanswered = Unanswered { attempts: self, id };
        let answer = create.await;
        std::mem::forget(unanswered);
        answer
    }

    /// Resolves when one is given up, or was since this last resolved.
    pub(super) async fn given_up(&self) {
        self.given_up.notified().await;
    }
}

struct Unanswered<'a> {
    attempts: &'a Attempts,
    id: &'a str,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        warn!(self.attempts.log, "create: given up, as its caller has gone or its time is over: what it has made is removed"; "container" => self.id);
        self.attempts.given_up.notify_one();
    }
}
