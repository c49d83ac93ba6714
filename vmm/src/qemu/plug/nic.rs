//! Network interfaces: descriptors of a tap's queues, a back end on them, a device on that.

use std::os::fd::OwnedFd;

use super::places::BusAddress;
use super::{Board, Held};
use crate::device::{Device, Netdev};
use crate::error::QmpError;
use crate::plug::{DeviceId, Nic, PlugError};
use crate::qemu::qmp::{Closefd, Getfd, NetdevAdd, NetdevDel, PresentedAdd};

impl Board {
    pub(super) async fn plug_nic(&self, id: &DeviceId, nic: Nic) -> Result<Held, PlugError> {
        let Some(queues) = nic.count() else {
            return Err(PlugError::Queues { queues: nic.queues.len(), vhost: nic.vhost.len() });
        };
        let at = self.free_slot()?;
        self.add_netdev(id, nic.queues, nic.vhost).await?;
        let device = Device::nic(id.0.clone(), nic.mac, queues, Some(at.into()));
        match self.qmp.execute(PresentedAdd(device.presented(self.virtio))).await {
            Ok(_) => Ok(Held::Nic { at: BusAddress::Pci(at) }),
            Err(error) => {
                // The device's own error is the one worth telling.
                let _ = self.forget_nic(id).await;
                Err(error.into())
            }
        }
    }

    /// Takes away what was behind a network interface.
    pub(super) async fn forget_nic(&self, id: &DeviceId) -> Result<(), QmpError> {
        self.qmp.execute(NetdevDel { id: id.0.clone() }).await.map(drop)
    }

    async fn add_netdev(
        &self,
        id: &DeviceId,
        queues: Vec<OwnedFd>,
        vhost: Vec<OwnedFd>,
    ) -> Result<(), QmpError> {
        let mut names = Vec::new();
        let added = async {
            let fds = self.hand_over(&format!("{id}-queue"), queues, &mut names).await?;
            let vhostfds = self.hand_over(&format!("{id}-vhost"), vhost, &mut names).await?;
            let vhostfds = Some(vhostfds).filter(|names| !names.is_empty());
            let netdev = Netdev::Tap { id: id.0.clone(), fds, vhost: vhostfds.is_some(), vhostfds };
            self.qmp.execute(NetdevAdd(netdev)).await
        };
        if let Err(error) = added.await {
            for fdname in names {
                // Those that QEMU has taken already are not there any more.
                let _ = self.qmp.execute(Closefd { fdname }).await;
            }
            return Err(error);
        }
        Ok(())
    }

    /// Gives QEMU descriptors, adds their names to `names` and returns them as a netdev takes them.
    async fn hand_over(
        &self,
        prefix: &str,
        fds: Vec<OwnedFd>,
        names: &mut Vec<String>,
    ) -> Result<String, QmpError> {
        let first = names.len();
        for (number, fd) in fds.into_iter().enumerate() {
            let fdname = format!("{prefix}-{number}");
            self.qmp.execute_with(Getfd { fdname: fdname.clone() }, fd).await?;
            names.push(fdname);
        }
        Ok(names[first..].join(":"))
    }
}
