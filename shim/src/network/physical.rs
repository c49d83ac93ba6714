//! An interface that is a device of the host: its driver loses it to VFIO's, and has it again when the machine is gone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vmm::vfio::HostDevice;

use crate::error::{Error, Result};

/// The driver by which machines have devices.
const VFIO: &str = "vfio-pci";

/// What the kernel shows where a device has no driver of its own choice.
const NO_OVERRIDE: &str = "(null)";

/// A PCI device with a driver of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Physical {
    address: String,
    driver: String,
    /// The driver that somebody has chosen for it, if so.
    chosen: Option<String>,
}

impl Physical {
    /// The device with this address, as it is; nothing is changed.
    ///
    /// # Errors
    /// Why a machine cannot have it.
    pub(super) fn at(sys: &Path, address: &str) -> std::result::Result<Physical, String> {
        let device = directory(sys, address);
        HostDevice::once_bound(sys, address).map_err(|error| error.to_string())?;
        if !drivers(sys).join(VFIO).exists() {
            return Err(format!("the host has no driver {VFIO} for it: modprobe {VFIO}"));
        }
        let driver = driver_of(&device).ok_or_else(|| format!("no driver has {address}"))?;
        let chosen = fs::read_to_string(device.join("driver_override")).unwrap_or_default();
        let chosen = Some(chosen.trim().to_owned()).filter(|name| !name.is_empty() && name != NO_OVERRIDE);
        Ok(Physical { address: address.to_owned(), driver, chosen })
    }

    /// Takes it from its driver; a machine may have it then. What was done until an error has to be undone.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) fn take(&self, sys: &Path) -> Result<HostDevice> {
        let device = directory(sys, &self.address);
        let refused = || Error::io(format!("give PCI device {} to {VFIO}", self.address));
        fs::write(device.join("driver_override"), VFIO).map_err(refused())?;
        fs::write(device.join("driver/unbind"), &self.address).map_err(refused())?;
        fs::write(sys.join("bus/pci/drivers_probe"), &self.address).map_err(refused())?;
        // This looks at the driver.
        let devices = HostDevice::with_its_group(sys, &self.address);
        let devices = devices.map_err(|error| Error::Failed(error.to_string()))?;
        let ours = devices.into_iter().find(|device| device.address() == Some(&self.address));
        ours.ok_or_else(|| Error::Failed(format!("PCI device {} is not in its own group", self.address)))
    }

    /// Gives it back, unless somebody else has had it since. The machine must be gone: the kernel waits for that.
    ///
    /// # Errors
    /// What the kernel refused, and what a human can do then.
    pub(super) fn give_back(&self, sys: &Path) -> Result<()> {
        let device = directory(sys, &self.address);
        let now = driver_of(&device);
        if now.as_deref().is_some_and(|now| now != VFIO) || !device.exists() {
            return Ok(());
        }
        let given = || -> io::Result<()> {
            // An empty line takes a choice back.
            fs::write(
                device.join("driver_override"),
                format!("{}\n", self.chosen.as_deref().unwrap_or_default()),
            )?;
            if now.is_some() {
                fs::write(device.join("driver/unbind"), &self.address)?;
            }
            fs::write(drivers(sys).join(&self.driver).join("bind"), &self.address)
        };
        let Physical { address, driver, .. } = self;
        given().map_err(|error| {
            Error::Failed(format!(
                "PCI device {address} is not {driver}'s again: {error}; `echo {address} > /sys/bus/pci/drivers/{driver}/bind` \
                 gives it back"
            ))
        })
    }
}

fn directory(sys: &Path, address: &str) -> PathBuf {
    sys.join("bus/pci/devices").join(address)
}

fn drivers(sys: &Path) -> PathBuf {
    sys.join("bus/pci/drivers")
}

fn driver_of(device: &Path) -> Option<String> {
    let driver = fs::read_link(device.join("driver")).ok()?;
    driver.file_name()?.to_str().map(str::to_owned)
}
