//! An interface that is a device of the host: its driver loses it to VFIO's, and has it again when the machine is gone.

use std::{
    fmt, fs, io,
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

impl fmt::Display for Physical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCI device {} of driver {}", self.address, self.driver)
    }
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
        // Where another driver has the device, ours was left by who took it half.
        let chosen = chosen_for(&device).filter(|chosen| chosen != VFIO || driver == VFIO);
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
        if !self.is_out(sys) {
            return self.take_choice_back(&device);
        }
        let now = driver_of(&device);
        let given = || -> io::Result<()> {
            self.restore_choice(&device)?;
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

    /// Whether nobody but a machine can have it: it is there, and VFIO's or nobody's.
    pub(super) fn is_out(&self, sys: &Path) -> bool {
        let device = directory(sys, &self.address);
        device.exists() && driver_of(&device).is_none_or(|driver| driver == VFIO)
    }

    /// A driver has it again, or never lost it. With our choice left it would be VFIO's the next time it is looked for one.
    fn take_choice_back(&self, device: &Path) -> Result<()> {
        if chosen_for(device).as_deref() != Some(VFIO) {
            return Ok(());
        }
        let what = format!("driver_override of PCI device {}, which is {VFIO}", self.address);
        self.restore_choice(device).map_err(Error::io(what))
    }

    fn restore_choice(&self, device: &Path) -> io::Result<()> {
        // An empty line takes a choice back.
        let choice = format!("{}\n", self.chosen.as_deref().unwrap_or_default());
        fs::write(device.join("driver_override"), choice)
    }
}

/// The driver that somebody, or we, have chosen for a device.
fn chosen_for(device: &Path) -> Option<String> {
    let chosen = fs::read_to_string(device.join("driver_override")).ok()?;
    Some(chosen.trim().to_owned()).filter(|name| !name.is_empty() && name != NO_OVERRIDE)
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
