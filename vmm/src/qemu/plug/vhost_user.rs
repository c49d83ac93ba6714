//! Disks that another program serves: a connection to it, a device on that.

use super::places::BusAddress;
use super::{Board, Held, places};
use crate::device::{ChardevBackend, Device};
use crate::error::QmpError;
use crate::plug::{DeviceId, PlugError, VhostUserDisk};
use crate::qemu::qmp::{ChardevAdd, ChardevRemove, DeviceAdd};

impl Board {
    pub(super) async fn plug_vhost_user_disk(
        &self,
        id: &DeviceId,
        disk: &VhostUserDisk,
    ) -> Result<Held, PlugError> {
        let at = places::pci(self.bridges, &self.taken())?;
        let backend = ChardevBackend::dialled(disk.socket(), disk.reconnect());
        self.qmp.execute(ChardevAdd { id: id.0.clone(), backend }).await?;
        let device =
            Device::VhostUserBlkPci { id: id.0.clone(), chardev: id.0.clone(), place: Some(at.into()) };
        match self.qmp.execute(DeviceAdd(device)).await {
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
