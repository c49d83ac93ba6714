//! From a process's start to its exit: its streams are moved, its end is waited for and told.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use containerd_shim_protos::{events::task::TaskExit, protobuf::MessageField};
use slog::info;
use tokio::time::timeout;

use super::Container;
use crate::{
    process::{Exit, LOST, NEVER_RAN, Process, State},
    sandbox::Sandbox,
    stdio::{Io, pump, wires::Wires},
};

/// What is written before an exit is nearly always here by then; a reader that is slow or gone must not hide the
/// exit for longer.
const DRAIN: Duration = Duration::from_secs(1);
/// How long the exits of execs, which end with their container, go before its own.
const EXECS: Duration = Duration::from_millis(500);
/// How long the exit of a sandbox's own container waits for the machine to be gone, so that its process id is not
/// seen alive by who was told of the exit.
const MACHINE: Duration = Duration::from_millis(300);

/// Runs beside a started process until everything about it has been told and delivered.
pub(super) async fn process(container: Arc<Container>, process: Arc<Process>, io: Io) {
    let source = container.source(&process);
    let Io { input, output, wires: Wires { stdin, stdout, stderr }, terminal } = io;
    let feeding = tokio::spawn(pump::feed(source.clone(), input, stdin));
    let mut draining = pump::drain(&source, output, [stdout, stderr], terminal);
    let exit = Exit::now(exit_status(&container, &process).await);
    let drained = draining.within(DRAIN).await;
    feeding.abort();
    process.close_input();
    let is_init = process.exec_id.is_empty();
    if is_init {
        execs_gone(&container).await;
    }
    if is_init && container.owns_sandbox && drained {
        // Goes on by itself when it takes longer.
        let _ = timeout(MACHINE, container.sandbox.stop("its container ended")).await;
    }
    publish_exit(&container, &process, exit);
    draining.finish().await;
    if is_init && container.owns_sandbox {
        container.sandbox.stop("its container ended").await;
    }
}

/// Ends a container that was never started when its machine does. There until its first process, whose `beginning` that
/// is, has begun, ended or gone: a pod's machine may outlive its containers by months.
pub(super) async fn unstarted(
    container: Weak<Container>,
    beginning: impl Future<Output = ()>,
    sandbox: Arc<Sandbox>,
) {
    tokio::select! {
        () = beginning => return,
        () = sandbox.gone() => {}
    }
    let Some(container) = container.upgrade() else { return };
    // A start under way ends first: an exit is never told before the start it follows.
    let _phase = container.phase.lock().await;
    if container.init.state() == State::Created {
        publish_exit(&container, &container.init, Exit::now(NEVER_RAN));
    }
}

/// What the guest says, or that the machine took the process along.
async fn exit_status(container: &Container, process: &Process) -> u32 {
    let sandbox = &container.sandbox;
    match sandbox.ask(sandbox.agent().wait_process(&container.id, &process.guest_id)).await {
        Ok(status) => u32::from(status),
        Err(error) => {
            info!(container.log, "exit status lost"; "exec" => &process.exec_id, "why" => error.to_string());
            LOST
        }
    }
}

async fn execs_gone(container: &Container) {
    let all = container.execs.all();
    let ended = async {
        for exec in all.iter().filter(|exec| exec.state() == State::Running) {
            exec.exited().await;
        }
    };
    let _ = timeout(EXECS, ended).await;
}

/// Tells who waits, and containerd, unless that has been done.
pub(super) fn publish_exit(container: &Container, process: &Process, exit: Exit) {
    if !process.set_stopped(exit) {
        return;
    }
    if process.exec_id.is_empty() {
        // What has not been started never will be, and nobody else ends its waiters' wait.
        container.execs.all().iter().filter(|exec| exec.take_spec().is_some()).for_each(|exec| {
            exec.set_stopped(Exit::now(NEVER_RAN));
        });
    }
    info!(container.log, "exited"; "exec" => &process.exec_id, "status" => exit.status);
    let id = if process.exec_id.is_empty() { &container.id } else { &process.exec_id };
    container.events.publish(TaskExit {
        container_id: container.id.clone(),
        id: id.clone(),
        pid: container.pid(),
        exit_status: exit.status,
        exited_at: MessageField::some(exit.timestamp()),
        ..Default::default()
    });
}
