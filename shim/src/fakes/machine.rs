//! A hypervisor whose machines are a socket each, with the guest's agent behind it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use vmm::{BootError, How, Hypervisor, Process, QmpError, StopError, Vm, VmExit, VmSpec, Vsock, Who};

/// What becomes of a boot.
#[derive(Clone, Copy, Default)]
pub(crate) enum Boot {
    #[default]
    Serves,
    /// QEMU ends while it boots.
    Dies,
    /// QEMU never comes to run.
    Hangs,
    /// The machine runs; its agent never says that it serves.
    Mute,
}

pub(crate) struct FakeHypervisor {
    /// Where the guest's agent listens.
    agent: PathBuf,
    boot: Mutex<Boot>,
    begun: watch::Sender<usize>,
    /// Every machine there was.
    machines: watch::Sender<Vec<Arc<Power>>>,
}

impl FakeHypervisor {
    pub(super) fn new(agent: PathBuf) -> FakeHypervisor {
        FakeHypervisor {
            agent,
            boot: Mutex::default(),
            begun: watch::Sender::default(),
            machines: watch::Sender::default(),
        }
    }

    /// From now on, boots go like this.
    pub(crate) fn boots(&self, boot: Boot) {
        *self.boot.lock().unwrap() = boot;
    }

    /// Waits until so many boots have begun.
    pub(crate) async fn has_begun(&self, boots: usize) {
        self.begun.subscribe().wait_for(|begun| *begun >= boots).await.unwrap();
    }

    /// Waits for a first machine to be booted, and has the last one die, as QEMU does when it is killed.
    pub(crate) async fn dies(&self) {
        self.last().await.off(How::Killed(9));
    }

    /// Has every connection into the last machine end, as when its agent dies; the machine runs on.
    pub(crate) async fn hangs_up(&self) {
        self.last().await.wires.abort();
    }

    async fn last(&self) -> Arc<Power> {
        let mut machines = self.machines.subscribe();
        machines.wait_for(|machines| !machines.is_empty()).await.unwrap().last().cloned().unwrap()
    }

    pub(crate) fn machines_on(&self) -> usize {
        self.machines.borrow().iter().filter(|power| power.exit.borrow().is_none()).count()
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn boot(&self, spec: VmSpec) -> Result<Box<dyn Vm>, BootError> {
        self.begun.send_modify(|begun| *begun += 1);
        let boot = *self.boot.lock().unwrap();
        match boot {
            Boot::Dies => return Err(BootError::Exited(exit(How::Exited(1)))),
            Boot::Hangs => std::future::pending().await,
            Boot::Serves | Boot::Mute => {}
        }
        let socket = spec.run_dir.join("vsock.sock");
        let wires = tokio::spawn(carry(UnixListener::bind(&socket).unwrap(), self.agent.clone()));
        let power = Arc::new(Power { exit: watch::Sender::default(), wires: wires.abort_handle() });
        self.machines.send_modify(|machines| machines.push(power.clone()));
        if matches!(boot, Boot::Serves) {
            UnixStream::connect(spec.run_dir.join("vsock.sock_1025")).await.unwrap();
        }
        Ok(Box::new(FakeVm { socket, power }))
    }
}

/// A machine's switch.
struct Power {
    exit: watch::Sender<Option<VmExit>>,
    wires: AbortHandle,
}

impl Power {
    /// Also cuts every connection into the machine.
    fn off(&self, how: How) {
        self.wires.abort();
        self.exit.send_if_modified(|known| known.is_none() && known.replace(exit(how)).is_none());
    }
}

fn exit(how: How) -> VmExit {
    VmExit { who: Who::Qemu, how, last_words: "last words".into() }
}

struct FakeVm {
    socket: PathBuf,
    power: Arc<Power>,
}

#[async_trait]
impl Vm for FakeVm {
    fn pid(&self) -> u32 {
        4242
    }

    fn processes(&self) -> Vec<Process> {
        Vec::new()
    }

    fn exit(&self) -> watch::Receiver<Option<VmExit>> {
        self.power.exit.subscribe()
    }

    fn vsock(&self) -> Vsock {
        Vsock::Unix { path: self.socket.clone() }
    }

    fn console_tail(&self) -> String {
        "the console's last line".into()
    }

    async fn pause(&self) -> Result<(), QmpError> {
        Ok(())
    }

    async fn resume(&self) -> Result<(), QmpError> {
        Ok(())
    }

    async fn stop(&self, _grace: Duration) -> Result<(), StopError> {
        self.power.off(How::Exited(0));
        Ok(())
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.power.off(How::Killed(9));
    }
}

/// Passes connections on to the agent, as `vhost-device-vsock` does, until it is stopped.
async fn carry(listener: UnixListener, agent: PathBuf) {
    let mut connections = JoinSet::new();
    loop {
        let (host, _) = listener.accept().await.unwrap();
        connections.spawn(carry_one(host, agent.clone()));
    }
}

async fn carry_one(mut host: UnixStream, agent: impl AsRef<Path>) {
    let mut line = [0; b"CONNECT 1024\n".len()];
    host.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"CONNECT 1024\n");
    host.write_all(b"OK 1073741824\n").await.unwrap();
    let mut guest = UnixStream::connect(agent).await.unwrap();
    // Ends in an error when either side is gone: what a cut wire is.
    let _ = copy_bidirectional(&mut host, &mut guest).await;
}
