//! Disks that another program serves: a connection to it, a device on that.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::errno::Errno;

use super::places::BusAddress;
use super::{Board, Held};
use crate::device::{ChardevBackend, Device};
use crate::error::QmpError;
use crate::plug::{DeviceId, PlugError, VhostUserDisk};
use crate::qemu::qmp::{ChardevAdd, ChardevRemove, PresentedAdd};

impl Board {
    pub(super) async fn plug_vhost_user_disk(
        &self,
        id: &DeviceId,
        disk: &VhostUserDisk,
    ) -> Result<Held, PlugError> {
        let at = self.free_slot()?;
        served(disk.socket())?;
        let backend = ChardevBackend::dialled(disk.socket(), disk.reconnect());
        self.qmp.execute(ChardevAdd { id: id.0.clone(), backend }).await?;
        let device =
            Device::VhostUserBlkPci { id: id.0.clone(), chardev: id.0.clone(), place: Some(at.into()) };
        match self.qmp.execute(PresentedAdd(device.presented(self.virtio))).await {
            Ok(_) => Ok(Held::VhostUserDisk { at: BusAddress::Pci(at) }),
            Err(error) => {
                // The device's own error is the one worth telling.
                let _ = self.forget_vhost_user_disk(id).await;
                Err(error.into())
            }
        }
    }

    /// Hangs up, once the device is gone.
    pub(super) async fn forget_vhost_user_disk(&self, id: &DeviceId) -> Result<(), QmpError> {
        self.qmp.execute(ChardevRemove { id: id.0.clone() }).await.map(drop)
    }
}

/// QEMU that is to make lost connections again waits for the first one for ever, and does nothing else meanwhile. So
/// nobody may be missing at `socket`. A datagram cannot be sent to a program that listens, which is not disturbed by the
/// attempt; what the kernel says of it tells whether there is one.
fn served(socket: &Path) -> Result<(), PlugError> {
    match UnixDatagram::unbound().and_then(|probe| probe.connect(socket)) {
        Err(error) if error.raw_os_error() == Some(Errno::EPROTOTYPE as i32) => Ok(()),
        Err(source) => Err(PlugError::Open { path: socket.to_owned(), source }),
        Ok(()) => {
            let source = io::Error::from(Errno::EPROTOTYPE);
            Err(PlugError::Open { path: socket.to_owned(), source })
        }
    }
}
