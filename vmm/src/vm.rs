//! The seam between the shim and its hypervisor.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

use crate::error::{BootError, QmpError, StopError, Unwell};
use crate::exit::VmExit;
use crate::identity::Process;
use crate::plug::{DeviceId, MemorySize, PlugError, Pluggable, Plugged};
use crate::spec::VmSpec;

/// Something that turns descriptions into running virtual machines.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Boots `spec` and returns once the guest's processors run. Dropping the call ends everything it started.
    async fn boot(&self, spec: VmSpec) -> Result<Box<dyn Vm>, BootError>;
}

/// A running virtual machine. Dropping it kills all of its processes.
#[async_trait]
pub trait Vm: Send + Sync {
    /// The process that is the machine.
    fn pid(&self) -> u32;

    /// Every process of the machine that was started, the machine itself first.
    fn processes(&self) -> Vec<Process>;

    /// Holds a value once the machine is of no more use: the first of its processes is gone, or its guest stuck.
    /// [`Vm::stop`] too makes that happen.
    fn exit(&self) -> watch::Receiver<Option<VmExit>>;

    /// What connects host and guest.
    fn vsock(&self) -> Arc<dyn Vsock>;

    /// The last lines of the guest's console, at most 16 KiB, control characters escaped.
    fn console_tail(&self) -> String;

    /// Stops the guest's processors.
    async fn pause(&self) -> Result<(), QmpError>;

    /// Lets the guest's processors go on.
    async fn resume(&self) -> Result<(), QmpError>;

    /// Adds a device. If the call is dropped, the machine is left without it.
    ///
    /// # Errors
    /// What is wrong with the device or the machine's room for it; the machine is as it was.
    async fn plug(&self, device: Pluggable) -> Result<Plugged, PlugError>;

    /// Takes a device away. Goes on if the call is dropped.
    ///
    /// # Errors
    /// [`PlugError::Held`] and [`PlugError::Refused`] when the guest keeps it: it is there still, and may be asked for
    /// again.
    async fn unplug(&self, id: &DeviceId) -> Result<(), PlugError>;

    /// Has the guest see the size that the device or the image behind a disk has by now, and returns it, in bytes.
    ///
    /// # Errors
    /// [`PlugError::Unknown`] for what is no disk of this machine, or QEMU's refusal.
    async fn resize_disk(&self, id: &DeviceId) -> Result<u64, PlugError>;

    /// Changes the number of virtual CPUs, within those of the boot and the most there can be, and returns it: emulated
    /// ones stay. The guest brings those that come online by itself, or has to be told.
    async fn resize_vcpus(&self, count: u32) -> Result<u32, PlugError>;

    /// Changes the memory, within that of the boot and the most there can be, and returns what it is, in MiB: never less
    /// than asked for unless that is the most, and more where blocks or modules allow no less. No more comes once nobody waits
    /// for it.
    async fn resize_memory(&self, size: MemorySize) -> Result<u64, PlugError>;

    /// Takes what memory the guest does not use, and the vsock, away, stops the guest's processors for good, and saves all of its state but its memory, which is
    /// in a file already, into `state`. Only for a machine whose specification says that it is a template; others can
    /// be copies of it afterwards, while this one is still to be stopped.
    ///
    /// # Errors
    /// What kept QEMU or the guest from it; the machine is of no use any more.
    async fn save(&self, state: File) -> Result<(), PlugError>;

    /// Ends the machine and waits until every process is reaped and its sockets are gone. QEMU has `grace` to end by
    /// itself, on request and then on SIGTERM; SIGKILL follows, at once if `grace` is zero. Returns at most 5 s after
    /// `grace`, or after the memory of a guest that panicked is kept where it is to be, and may be called any number of times, also by several tasks.
    async fn stop(&self, grace: Duration) -> Result<(), StopError>;

    /// Whether the machine is well: QEMU answers within seconds, and the guest runs, is paused, or could run again.
    async fn check(&self) -> Result<(), Unwell>;

    /// The threads of [`Vm::pid`] that the guest's processors are, in the order of those. Emulated ones may share one.
    async fn vcpu_threads(&self) -> Result<Vec<VcpuThread>, QmpError>;
}

/// A thread of the host that is a processor of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct VcpuThread {
    /// The processor's number, from 0 on.
    #[serde(rename = "cpu-index")]
    pub vcpu: u32,
    /// The thread's number.
    #[serde(rename = "thread-id")]
    pub tid: u32,
}

/// What connects programs on the host with those in the guest.
#[async_trait]
pub trait Vsock: fmt::Debug + Send + Sync {
    /// Connects to a port that the guest listens on. Has no deadline: a guest that still boots answers when it has a
    /// driver. Dropping the call gives the connection up.
    ///
    /// # Errors
    /// `ConnectionRefused` when nobody listens there, `NotConnected` when there is no guest any more.
    async fn connect(&self, port: u32) -> io::Result<Connection>;

    /// Takes the guest's connections to the host's `port` from now on. Nothing where the host's kernel carries the
    /// connections: listening there would be for every guest.
    fn listen(&self, port: u32) -> Option<Listener>;
}

/// A connection with the guest.
pub struct Connection {
    /// The host's end. Shutting it down ends what the guest reads.
    pub stream: Box<dyn Stream>,
    /// The host's port, by which the guest knows the connection.
    pub local_port: u32,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("local_port", &self.local_port).finish_non_exhaustive()
    }
}

/// The guest's connections to one port of the host.
pub type Listener = mpsc::Receiver<Connection>;

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}
