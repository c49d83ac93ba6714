//! How the guest sees the virtio devices of a machine, and those whose back end is another program's.

use std::num::NonZeroU32;
use std::path::PathBuf;

use super::error::SpecError;

/// How virtio devices on PCI present themselves. One answer, as the two special ones exclude each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VirtioPci {
    /// As what each device is by itself.
    #[default]
    Usual,
    /// By the interface from before virtio 1.0, whose port accesses cost least where the host is a virtual machine
    /// itself. Devices that never had it stay as they are.
    Legacy,
    /// Their memory accesses go through the IOMMU. Devices of other processes on this host bypass it.
    BehindIommu,
}

/// A device whose back end listens on a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUser {
    /// The socket, an absolute path of at most 107 bytes.
    socket: PathBuf,
    /// What it is to the guest.
    pub kind: VhostUserKind,
    /// After how many seconds a lost connection is made again.
    pub reconnect: Option<NonZeroU32>,
}

/// What a vhost-user device is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VhostUserKind {
    /// A disk.
    Blk,
    /// A controller of SCSI disks.
    Scsi,
    /// A network interface with this address.
    Net([u8; 6]),
}

impl VhostUser {
    /// Takes `socket` if its name fits into the address of a Unix socket.
    pub fn new(
        socket: impl Into<PathBuf>,
        kind: VhostUserKind,
        reconnect: Option<NonZeroU32>,
    ) -> Result<VhostUser, SpecError> {
        let socket = socket.into();
        if socket.is_absolute() && socket.as_os_str().len() <= 107 {
            return Ok(VhostUser { socket, kind, reconnect });
        }
        Err(SpecError::Socket(socket))
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }
}
