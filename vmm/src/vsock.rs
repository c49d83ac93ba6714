//! What carries the connections between host and guest.

mod device;
mod vhost;

#[cfg(fuzzing)]
pub(crate) use device::fuzzing;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use slog::Logger;

use crate::error::BootError;
use crate::spec::VsockSpec;
use crate::vm::Vsock;

/// The guest's address where the device is ours and no other guest's.
const ONLY_GUEST: u32 = 3;

/// A vsock that is there.
#[derive(Debug)]
pub(crate) struct Backend {
    /// What QEMU inherits of it.
    pub(crate) fd: OwnedFd,
    /// The guest's address.
    pub(crate) cid: u32,
    /// The host's side.
    pub(crate) host: Arc<dyn Vsock>,
    /// Serves the guest until it is dropped, where the kernel does not.
    pub(crate) device: Option<device::Device>,
}

pub(crate) use device::Device;
pub use vhost::VHOST_VSOCK;

/// Makes the back end that `spec` asks for.
pub(crate) fn start(spec: VsockSpec, log: &Logger) -> Result<Backend, BootError> {
    match spec {
        VsockSpec::Vhost => vhost::start(),
        VsockSpec::VhostUser => own(log.clone())
            .map_err(|source| BootError::Io { doing: "make a vsock device".to_owned(), source }),
    }
}

fn own(log: Logger) -> io::Result<Backend> {
    let (device, host, fd) = device::start(ONLY_GUEST, log)?;
    Ok(Backend { fd, cid: ONLY_GUEST, host: Arc::new(host), device: Some(device) })
}
