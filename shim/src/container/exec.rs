//! Further processes in a container.

use std::sync::Arc;

use agent_protocol::convert;
use containerd_shim_protos::{api::ExecProcessRequest, events::task as event};
use oci_spec::runtime::Process as OciProcess;
use slog::Logger;

use super::{Container, capabilities, spec, supervise};
use crate::{
    error::{Error, Result},
    ids,
    process::{Exit, NEVER_RAN, Process, State},
    stdio::{Io, Paths, sink, wires::Connected},
};

impl Container {
    /// Takes in an exec that a later Start runs.
    ///
    /// # Errors
    /// `AlreadyExists` for an id that is in use, `InvalidArgument` for a process that cannot be one; also when the
    /// container has ended or is paused.
    pub(crate) fn add_exec(&self, request: ExecProcessRequest) -> Result<()> {
        ids::check("exec id", &request.exec_id)?;
        if self.is_paused() || self.is_stopped() {
            return Err(self.wrong_state("exec in"));
        }
        let reserved = self.execs.reserve(&request.exec_id)?;
        let spec = read_process(&request, &self.sandbox.confinement().selinux, &self.log)?;
        let stdio = Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        reserved.fill(Arc::new(Process::new(&request.exec_id, &guest_id()?, stdio).with_spec(spec)));
        self.events.publish(event::TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: request.exec_id,
            ..Default::default()
        });
        Ok(())
    }

    /// Runs an exec.
    ///
    /// # Errors
    /// Unless it is just created; else the guest's own words, as for a command that is not
    /// there.
    pub(crate) async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<()> {
        let process = self.execs.get(exec_id)?;
        if self.is_stopped() {
            return Err(self.wrong_state("exec in"));
        }
        let Some(spec) = process.take_spec() else {
            return Err(Error::Failed(format!("exec {exec_id} has been started before")));
        };
        let started = self.run_exec(&process, spec).await;
        if started.is_err() {
            process.set_stopped(Exit::now(NEVER_RAN));
            process.close_input();
        }
        started
    }

    async fn run_exec(self: &Arc<Self>, process: &Arc<Process>, spec: OciProcess) -> Result<()> {
        let input = process.open_input()?;
        let output = sink::open(&process.stdio, &self.id, &self.namespace).await?;
        let terminal = process.stdio.terminal;
        let Connected { wires, ports, turn } = self.sandbox.wires(terminal).await?;
        let request = convert::process_to_wire(&spec);
        let made = self.sandbox.agent().exec_process(&self.id, &process.guest_id, request, ports);
        self.sandbox.ask(made).await?;
        drop(turn);
        process.set_running();
        self.events.publish(event::TaskExecStarted {
            container_id: self.id.clone(),
            exec_id: process.exec_id.clone(),
            pid: self.pid(),
            ..Default::default()
        });
        let io = Io { input, output, wires, terminal };
        tokio::spawn(supervise::process(self.clone(), process.clone(), io));
        Ok(())
    }

    /// Forgets an exec.
    ///
    /// # Errors
    /// While it runs; `NotFound` when there is none.
    pub(crate) fn delete_exec(&self, exec_id: &str) -> Result<Exit> {
        let process = self.execs.get(exec_id)?;
        let exit = match process.state() {
            State::Running => {
                return Err(Error::Failed(format!("cannot delete a running exec: {exec_id}")));
            }
            State::Created => Exit::now(NEVER_RAN),
            State::Stopped(exit) => exit,
        };
        self.execs.remove(exec_id, &process)?;
        Ok(exit)
    }
}

/// Reads the OCI process, which containerd sends as JSON.
fn read_process(
    request: &ExecProcessRequest,
    selinux: &spec::GuestSelinux,
    log: &Logger,
) -> Result<OciProcess> {
    let json =
        request.spec.as_ref().ok_or_else(|| Error::InvalidArgument("exec: no process given".into()))?;
    let (mut process, unknown): (OciProcess, _) = capabilities::read(&json.value, "/capabilities")
        .map_err(|error| Error::InvalidArgument(format!("exec: process ({}): {error}", json.type_url)))?;
    unknown.warn(log);
    if process.args().as_ref().is_none_or(|args| args.is_empty()) {
        return Err(Error::InvalidArgument(
            "exec: process.args is empty: the first is the program to run".into(),
        ));
    }
    process.set_terminal(Some(request.terminal));
    spec::with_guest_labels(&mut process, selinux);
    Ok(process)
}

/// A name of its own for every process in the guest, so that a containerd exec id can be used again, and be the same
/// as a container's.
fn guest_id() -> Result<String> {
    let uuid =
        std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(Error::io("random exec id"))?;
    Ok(uuid.trim().to_string())
}
