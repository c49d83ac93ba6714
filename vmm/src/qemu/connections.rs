//! What connects a machine with programs of the host: its share and its vsock. QEMU inherits them, or it is handed them
//! once the machine has its state.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::boot::unless_it_ends;
use super::command::{ShareEnd, VsockEnd};
use super::late::{Late, LateShare, LateVsock};
use crate::error::BootError;
use crate::nydusd;
use crate::processes::Processes;
use crate::spec::{FsServer, Origin, Share, ShareKind, VmSpec, VsockSpec};
use crate::virtiofsd;
use crate::vm::Vsock;
use crate::vsock::{self, Device};

/// The ends of them all.
pub(super) struct Connections<'a> {
    /// What the command line says of the share, if anything.
    pub(super) share: Option<ShareEnd<'a>>,
    /// What it says of the vsock.
    pub(super) vsock: Option<VsockEnd>,
    /// What QEMU inherits for that.
    pub(super) fds: Vec<OwnedFd>,
    /// What it is handed later.
    pub(super) late: Option<Late<'a>>,
    /// The host's side of the vsock.
    pub(super) host: Arc<dyn Vsock>,
    /// What serves it, where that is not the kernel.
    pub(super) device: Option<Device>,
}

impl<'a> Connections<'a> {
    /// Starts what QEMU is to be connected with.
    pub(super) async fn make(processes: &Processes, spec: &'a VmSpec) -> Result<Connections<'a>, BootError> {
        let daemon = daemon(processes, spec).await?;
        let vsock = vsock::start(spec.vsock, processes.log())?;
        if spec.vsock == VsockSpec::Vhost {
            processes.record_cid(vsock.cid)?;
        }
        let (host, device) = (vsock.host, vsock.device);
        let (fd, cid) = (vsock.fd, vsock.cid);
        if spec.origin != Origin::Boot {
            let late = Some(Late { share: daemon, vsock: LateVsock { kind: spec.vsock, fd, cid } });
            return Ok(Connections { share: by_9p(spec), vsock: None, fds: Vec::new(), late, host, device });
        }
        let end = match spec.vsock {
            VsockSpec::Vhost => VsockEnd::Vhost { fd: fd.as_raw_fd(), cid },
            VsockSpec::VhostUser => VsockEnd::VhostUser { fd: fd.as_raw_fd() },
        };
        let (share, fds) = match daemon {
            Some(LateShare { socket, tag, fs }) => {
                (Some(ShareEnd::VirtioFs { tag, fs, fd: socket.as_raw_fd() }), vec![fd, socket])
            }
            None => (by_9p(spec), vec![fd]),
        };
        Ok(Connections { share, vsock: Some(end), fds, late: None, host, device })
    }
}

/// The daemon of a virtio-fs share. A template has none: QEMU could not save what another program serves.
async fn daemon<'a>(processes: &Processes, spec: &'a VmSpec) -> Result<Option<LateShare<'a>>, BootError> {
    match &spec.share {
        Some(Share { source, tag, kind: ShareKind::VirtioFs(fs) })
            if !matches!(spec.origin, Origin::Template { .. }) =>
        {
            let socket = match fs.server {
                // It needs no waiting for: it comes up while QEMU does.
                FsServer::Virtiofsd(cache) => virtiofsd::start(processes, fs, cache, source)?,
                FsServer::Nydusd => {
                    unless_it_ends(processes.exit(), nydusd::start(processes, fs, source)).await?
                }
            };
            Ok(Some(LateShare { socket, tag, fs }))
        }
        _ => Ok(None),
    }
}

/// A share that QEMU serves itself is there from the start, as QEMU takes no such directory later.
fn by_9p(spec: &VmSpec) -> Option<ShareEnd<'_>> {
    match &spec.share {
        Some(Share { source, tag, kind: ShareKind::Virtio9p }) => Some(ShareEnd::Virtio9p { tag, source }),
        _ => None,
    }
}
