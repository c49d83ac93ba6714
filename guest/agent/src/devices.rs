//! Devices that come while the guest runs: their drivers, and the names the kernel gives them.

mod block;
mod pci;
mod uevents;
mod vfio;

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_protocol::agent::{Device, Storage};
use oci_spec::runtime::LinuxDeviceType;
use tokio::sync::Notify;

use crate::{error::Error, modules};
use block::Address;
pub(crate) use pci::Addresses;
use uevents::Uevents;

/// How long the host may be ahead of a device. Under TCG and load seconds are not unusual.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the kernel shows devices.
const SYS: &str = "/sys";

/// The file of a device of a container.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Where the container has it by the host's word.
    pub(crate) path: PathBuf,
    /// Where it has it in the guest.
    pub(crate) becomes: PathBuf,
    /// Block or character device.
    pub(crate) kind: LinuxDeviceType,
    /// The device's numbers in the guest.
    pub(crate) numbers: u64,
}

/// What a container is given.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) nodes: Vec<Node>,
    /// Of devices of the host.
    pub(crate) addresses: Addresses,
}

/// Knows when there is a new device.
pub(crate) struct Devices {
    arrived: Notify,
}

impl Devices {
    /// Starts listening to the kernel, on the event loop this is called in. New virtio devices get their drivers.
    pub(crate) fn start() -> Result<Arc<Self>, Error> {
        let events = Uevents::listen().map_err(Error::system("listen for new devices"))?;
        let devices = Arc::new(Self { arrived: Notify::new() });
        tokio::spawn(Arc::clone(&devices).serve(events));
        Ok(devices)
    }

    async fn serve(self: Arc<Self>, events: Uevents) {
        loop {
            match events.next().await {
                Ok(event) if event.is_new() => {
                    if event.is_of("virtio") {
                        modules::drive_virtio_devices();
                    }
                    self.arrived.notify_waiters();
                }
                Ok(_) => {}
                Err(error) => return ::log::error!("new devices are no longer noticed: {error}"),
            }
        }
    }

    /// The storages with disks that are named by their place on a bus named by their device file instead. Waits for
    /// those that are not there yet.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for what is no such place, [`Error::Timeout`] naming the place where nothing came.
    pub(crate) async fn named(&self, storages: &[Storage]) -> Result<Vec<Storage>, Error> {
        let mut named = storages.to_vec();
        for storage in &mut named {
            if let Some(address) = Address::of(storage)? {
                storage.source = self.disk(address).await?;
            }
        }
        Ok(named)
    }

    /// The devices that a container gets. Waits for those that are not there yet.
    ///
    /// # Errors
    ///
    /// As [`Self::named`].
    pub(crate) async fn of_container(&self, devices: &[Device]) -> Result<Given, Error> {
        let mut given = Given::default();
        for device in devices {
            if let Some(use_) = vfio::Use::of(device) {
                vfio::give(self, device, use_, &mut given).await?;
                continue;
            }
            let file = self.disk(Address::of_device(device)?).await?;
            let numbers = fs::metadata(&file).map_err(Error::system(format!("look at {file}")))?.rdev();
            let path = PathBuf::from(&device.container_path);
            given.nodes.push(Node { becomes: path.clone(), path, kind: LinuxDeviceType::B, numbers });
        }
        Ok(given)
    }

    /// The device file of the disk in the slots `path` of the root bus and of the bridge there. Waits for it.
    ///
    /// # Errors
    ///
    /// As [`Self::named`].
    pub(crate) async fn disk_at(&self, path: &[u32]) -> Result<String, Error> {
        self.disk(Address::of_slots(path)?).await
    }

    async fn disk(&self, address: Address) -> Result<String, Error> {
        for module in address.drivers() {
            modules::need(module)?;
        }
        address.look_for(Path::new(SYS));
        // The kernel shows a disk a moment before it can be opened, and tells of it after that.
        let opens = |file: &String| File::open(file).is_ok();
        let find = || Ok(address.find(Path::new(SYS)).map(|name| format!("/dev/{name}")).filter(opens));
        self.wait_for(&format!("wait for a disk at {address}"), find).await
    }

    /// What `find` finds, once there is such a device; `what` says what is waited for.
    ///
    /// # Errors
    ///
    /// What `find` fails with, [`Error::Timeout`] where nothing came.
    pub(crate) async fn wait_for<T>(
        &self,
        what: &str,
        mut find: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let found = async {
            loop {
                let arrived = self.arrived.notified();
                tokio::pin!(arrived);
                // From here on nothing that arrives is missed.
                arrived.as_mut().enable();
                if let Some(found) = find()? {
                    return Ok(found);
                }
                arrived.await;
            }
        };
        let late = |_| Error::Timeout { what: what.to_owned(), after: PATIENCE };
        tokio::time::timeout(PATIENCE, found).await.map_err(late)?
    }
}
