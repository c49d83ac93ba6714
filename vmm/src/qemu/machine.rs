//! A running guest.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::balloon;
use super::health;
use super::late;
use super::monitor::Monitor;
use super::plug::Plugs;
use super::qmp::{Cont, Quit, Stop};
use super::state;
use super::timer::TimerWatch;
use crate::child::Child;
use crate::console::Console;
use crate::error::{QmpError, StopError, Unwell};
use crate::exit::VmExit;
use crate::identity::Process;
use crate::plug::{DeviceId, MemorySize, PlugError, Pluggable, Plugged};
use crate::processes::Processes;
use crate::spec::VsockSpec;
use crate::vm::{VcpuThread, Vm, Vsock};
use crate::vsock::Device;

/// What boots a machine leaves to it, besides its processes.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) qemu: Arc<Child>,
    pub(crate) monitor: Monitor,
    pub(crate) plugs: Plugs,
    pub(crate) console: Console,
    pub(crate) vsock: Arc<dyn Vsock>,
    pub(crate) vsock_kind: VsockSpec,
    /// Serves the guest for as long as it is held.
    pub(crate) _device: Option<Device>,
    pub(crate) _timer: Option<TimerWatch>,
}

/// A machine whose QEMU is our child.
#[derive(Debug)]
pub(crate) struct Machine {
    processes: Processes,
    parts: Parts,
}

impl Machine {
    pub(crate) fn new(processes: Processes, parts: Parts) -> Machine {
        Machine { processes, parts }
    }

    /// Asks QEMU to end, within `grace`.
    async fn ask(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let Parts { qemu, monitor, .. } = &self.parts;
        let quit = async {
            // The answer does not matter, the exit does.
            let _ = monitor.qmp().execute_within(Quit {}, grace).await;
            qemu.gone_within(grace).await
        };
        if matches!(timeout(grace / 2, quit).await, Ok(true)) {
            return;
        }
        qemu.signal(libc::SIGTERM);
        qemu.gone_within(deadline.duration_since(Instant::now())).await;
    }
}

#[async_trait]
impl Vm for Machine {
    fn pid(&self) -> u32 {
        self.parts.qemu.process().pid
    }

    fn processes(&self) -> Vec<Process> {
        // QEMU is started last.
        self.processes.list().into_iter().rev().collect()
    }

    fn exit(&self) -> watch::Receiver<Option<VmExit>> {
        self.processes.exit()
    }

    fn vsock(&self) -> Arc<dyn Vsock> {
        self.parts.vsock.clone()
    }

    fn console_tail(&self) -> String {
        self.parts.console.tail()
    }

    async fn pause(&self) -> Result<(), QmpError> {
        self.parts.monitor.qmp().execute(Stop {}).await.map(drop)
    }

    async fn resume(&self) -> Result<(), QmpError> {
        self.parts.monitor.qmp().execute(Cont {}).await.map(drop)
    }

    async fn plug(&self, device: Pluggable) -> Result<Plugged, PlugError> {
        self.parts.plugs.plug(device).await
    }

    async fn unplug(&self, id: &DeviceId) -> Result<(), PlugError> {
        self.parts.plugs.unplug(id).await
    }

    async fn resize_disk(&self, id: &DeviceId) -> Result<u64, PlugError> {
        self.parts.plugs.resize_disk(id).await
    }

    async fn resize_vcpus(&self, count: u32) -> Result<u32, PlugError> {
        self.parts.plugs.resize_vcpus(count).await
    }

    async fn resize_memory(&self, size: MemorySize) -> Result<u64, PlugError> {
        self.parts.plugs.resize_memory(size).await
    }

    async fn save(&self, state: File) -> Result<(), PlugError> {
        let qmp = self.parts.monitor.qmp();
        let saved = async {
            balloon::squeeze(qmp).await?;
            late::unplug_vsock(qmp, self.parts.vsock_kind).await?;
            qmp.execute(Stop {}).await?;
            Ok(state::save(qmp, state).await?)
        };
        let mut exit = self.exit();
        tokio::select! {
            saved = saved => saved,
            _ = exit.wait_for(Option::is_some) => Err(QmpError::Gone { command: "migrate".to_owned() }.into()),
        }
    }

    async fn stop(&self, grace: Duration) -> Result<(), StopError> {
        self.parts.monitor.has_kept_memory().await;
        if !grace.is_zero() && !self.parts.qemu.is_gone() {
            self.ask(grace).await;
        }
        self.processes.kill().await
    }

    async fn check(&self) -> Result<(), Unwell> {
        health::check(self.parts.monitor.qmp()).await
    }

    async fn vcpu_threads(&self) -> Result<Vec<VcpuThread>, QmpError> {
        health::vcpu_threads(self.parts.monitor.qmp()).await
    }
}
