//! QEMU's machine protocol on a connected socket: lines of JSON, answers told apart by an id, events in between.
//!
//! One task owns the socket. Callers hand it commands and wait for the answer as long as they like; an answer nobody
//! waits for any more is dropped. When the connection ends (a socketpair may say so by a reset), every waiting
//! caller learns that QEMU is gone.

mod command;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
#[cfg(test)]
pub(super) mod tests;
mod wire;

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::Value;
use slog::Logger;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;

use crate::error::QmpError;
pub(crate) use command::{
    AddFd, Balloon, BlockResize, BlockdevAdd, BlockdevDel, Capability, ChardevAdd, ChardevRemove, Closefd,
    Command, Cont, CpuAdd, CpuSlot, DeviceAdd, DeviceDel, DumpGuestMemory, Getfd, HumanMonitorCommand,
    Migrate, MigrateIncoming, MigrateSetCapabilities, NetdevAdd, NetdevDel, ObjectAdd, ObjectDel,
    PresentedAdd, QomGet, QomSet, QueryBalloon, QueryCpusFast, QueryHotpluggableCpus, QueryMemorySize,
    QueryMigrate, QueryStatus, Quit, RemoveFd, SetAction, Stop, SystemReset, VersionInfo,
};
use wire::{Answer, Greeting};

/// Commands that wait for the socket.
const QUEUE: usize = 16;
/// Events a listener may be behind before it misses some.
const EVENTS: usize = 64;

/// Something QEMU says unasked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    /// What it says besides; null for most.
    pub(crate) data: Value,
}

/// The way to one QEMU; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Qmp {
    calls: mpsc::Sender<Call>,
    events: broadcast::Sender<Event>,
    patience: Duration,
}

struct Call {
    command: &'static str,
    arguments: Value,
    /// Goes with the command.
    fd: Option<OwnedFd>,
    answer: oneshot::Sender<Answer>,
}

impl Qmp {
    /// Waits for QEMU's greeting and leaves negotiation mode. Every command, this first one too, has `patience`.
    pub(crate) async fn negotiate(
        stream: UnixStream,
        patience: Duration,
        log: Logger,
    ) -> Result<(Qmp, VersionInfo), QmpError> {
        let mut wire = wire::Wire::new(stream);
        let greeting = match timeout(patience, wire.receive()).await {
            Err(_) => return Err(QmpError::Timeout { command: GREETING.to_owned(), after: patience }),
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Err(QmpError::Gone { command: GREETING.to_owned() }),
            Ok(Err(what)) => return Err(QmpError::Protocol { command: GREETING.to_owned(), what }),
        };
        let greeting: Greeting = serde_json::from_slice(&greeting)
            .map_err(|error| QmpError::Protocol { command: GREETING.to_owned(), what: error.to_string() })?;
        let (calls, queue) = mpsc::channel(QUEUE);
        let (events, _) = broadcast::channel(EVENTS);
        tokio::spawn(wire::serve(wire, queue, events.clone(), log));
        let qmp = Qmp { calls, events, patience };
        qmp.execute(command::QmpCapabilities {}).await?;
        Ok((qmp, greeting.version()))
    }

    /// Carries out `command`.
    pub(crate) async fn execute<C: Command>(&self, command: C) -> Result<C::Reply, QmpError> {
        self.execute_within(command, self.patience).await
    }

    /// Carries out `command`, which has `patience` for it.
    pub(crate) async fn execute_within<C: Command>(
        &self,
        command: C,
        patience: Duration,
    ) -> Result<C::Reply, QmpError> {
        self.call(command, None, patience).await
    }

    /// Carries out `command`, which is about `fd`.
    pub(crate) async fn execute_with<C: Command>(
        &self,
        command: C,
        fd: OwnedFd,
    ) -> Result<C::Reply, QmpError> {
        self.call(command, Some(fd), self.patience).await
    }

    async fn call<C: Command>(
        &self,
        command: C,
        fd: Option<OwnedFd>,
        patience: Duration,
    ) -> Result<C::Reply, QmpError> {
        let name = || C::NAME.to_owned();
        let protocol =
            |error: serde_json::Error| QmpError::Protocol { command: name(), what: error.to_string() };
        let arguments = serde_json::to_value(&command).map_err(protocol)?;
        let (answer, answered) = oneshot::channel();
        let call = Call { command: C::NAME, arguments, fd, answer };
        let asked = async {
            self.calls.send(call).await.ok()?;
            answered.await.ok()
        };
        match timeout(patience, asked).await {
            Err(_) => Err(QmpError::Timeout { command: name(), after: patience }),
            Ok(None) => Err(QmpError::Gone { command: name() }),
            Ok(Some(Answer::Return(value))) => serde_json::from_value(value).map_err(protocol),
            Ok(Some(Answer::Error { class, desc })) => {
                Err(QmpError::Refused { command: name(), class, desc })
            }
        }
    }

    /// Events from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// What stands for a command's name while none was sent.
const GREETING: &str = "the connection";
