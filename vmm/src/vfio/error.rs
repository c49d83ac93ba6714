//! Devices that a guest cannot have.

use std::path::PathBuf;

/// Why a device of the host is not for a guest.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// Neither a PCI address nor a UUID.
    #[error("{0:?} is neither a PCI address like 0000:01:00.0 nor the UUID of a mediated device")]
    Name(String),
    /// The kernel does not tell.
    #[error("read {}: {source}", path.display())]
    Unreadable {
        /// Where it was asked.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The kernel tells something unheard of.
    #[error("{}: {text:?} is not known", path.display())]
    Unexpected {
        /// Where it was asked.
        path: PathBuf,
        /// What it said.
        text: String,
    },
    /// Nothing keeps the device from the host's memory.
    #[error(
        "{0} is in no IOMMU group: switch the IOMMU on in the firmware, and in the kernel by intel_iommu=on"
    )]
    NoGroup(String),
    /// Its driver is not VFIO's.
    #[error(
        "{address}, which the guest is to have, is driven by {}: bind it to vfio-pci by 'driverctl set-override \
         {address} vfio-pci'",
        driver.as_deref().unwrap_or("nothing")
    )]
    Driver {
        /// The device: the one that was asked for, or one of its group.
        address: String,
        /// Its driver, if it has one.
        driver: Option<String>,
    },
}
