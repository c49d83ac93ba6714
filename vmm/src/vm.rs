//! The seam between the shim and its hypervisor.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::error::{BootError, QmpError, StopError};
use crate::exit::VmExit;
use crate::identity::Process;
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

    /// Where the host reaches the guest's vsock ports.
    fn vsock(&self) -> Vsock;

    /// The last lines of the guest's console, at most 16 KiB, control characters escaped.
    fn console_tail(&self) -> String;

    /// Stops the guest's processors.
    async fn pause(&self) -> Result<(), QmpError>;

    /// Lets the guest's processors go on.
    async fn resume(&self) -> Result<(), QmpError>;

    /// Ends the machine and waits until every process is reaped and its sockets are gone. QEMU has `grace` to end by
    /// itself, on request and then on SIGTERM; SIGKILL follows, at once if `grace` is zero. Returns at most 5 s after
    /// `grace`, and may be called any number of times, also by several tasks.
    async fn stop(&self, grace: Duration) -> Result<(), StopError>;
}

/// Where the host reaches the guest's vsock ports, and the guest the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vsock {
    /// By `AF_VSOCK`.
    Kernel {
        /// The guest's address.
        cid: u32,
    },
    /// By a Unix socket that takes `CONNECT <port>`. A guest that connects to port P of CID 2 arrives at the socket
    /// of this name with `_P` behind it.
    Unix {
        /// The socket, an absolute path.
        path: PathBuf,
    },
}
