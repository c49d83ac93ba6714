//! What carries the connections between host and guest.

mod vhost;
mod vhost_user;

use std::os::fd::OwnedFd;

use crate::error::BootError;
use crate::processes::Processes;
use crate::spec::VsockSpec;
use crate::vm::Vsock;

/// A vsock that is there.
#[derive(Debug)]
pub(crate) struct Backend {
    /// What QEMU inherits of it.
    pub(crate) fd: OwnedFd,
    /// Where the host reaches it.
    pub(crate) reach: Vsock,
}

/// Makes the back end that `spec` asks for.
pub(crate) async fn start(processes: &Processes, spec: &VsockSpec) -> Result<Backend, BootError> {
    match spec {
        VsockSpec::Vhost => vhost::start(),
        VsockSpec::VhostUser { daemon } => vhost_user::start(processes, daemon).await,
    }
}
