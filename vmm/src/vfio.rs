//! Devices of the host that a guest can have: what the kernel says of them below [`SYSFS`].
//!
//! What the IOMMU cannot keep apart is one group, and a guest gets all of it or nothing.

mod error;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use error::VfioError;

/// Where the kernel tells of its devices.
pub const SYSFS: &str = "/sys";

/// A device of the host that VFIO hands over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    kind: HostKind,
    express: bool,
}

/// What a device is to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKind {
    /// A PCI device; each function is one, and one of the guest's by itself.
    Pci {
        /// Domain, bus, slot and function: `0000:01:00.0`.
        address: String,
        /// Who made it.
        vendor: u16,
        /// Which of theirs it is.
        device: u16,
        /// Class, subclass and interface of the PCI Code and ID Assignment.
        class: u32,
    },
    /// A part of one that its driver made, a PCI device to the guest too.
    Mediated {
        /// Its directory in sysfs.
        directory: PathBuf,
    },
    /// A matrix of adjunct processors of IBM Z.
    Ap {
        /// Its directory in sysfs.
        directory: PathBuf,
        /// What is in the matrix: numbers of adapter and domain, `05.0004`.
        queues: Vec<String>,
    },
}

/// What PCI-to-PCI bridges have for a class, without the interface.
const BRIDGE: u32 = 0x0604;
/// Configuration space of conventional PCI, in bytes; that of PCI Express is larger.
const CONVENTIONAL: u64 = 256;

impl HostDevice {
    /// All devices of the group with this number, which is that of `/dev/vfio/<number>`. `sys` is [`SYSFS`].
    ///
    /// # Errors
    /// [`VfioError`] if the kernel knows no such group, or if one of its devices is in use by the host.
    pub fn group(sys: &Path, number: u32) -> Result<Vec<HostDevice>, VfioError> {
        let directory = sys.join(format!("kernel/iommu_groups/{number}/devices"));
        let mut names = names(&directory)?;
        names.sort();
        let devices = names.iter().map(|name| HostDevice::read(sys, name));
        devices.filter_map(Result::transpose).collect()
    }

    /// The device `name`, a PCI address or the UUID of a mediated device, and whatever has to go with it.
    ///
    /// # Errors
    /// [`VfioError`] if there is no such device, or if it or one of its group is in use by the host.
    pub fn with_its_group(sys: &Path, name: &str) -> Result<Vec<HostDevice>, VfioError> {
        let name =
            if is_pci_address(&format!("0000:{name}")) { format!("0000:{name}") } else { name.to_owned() };
        let link = directory(sys, &name)?.join("iommu_group");
        let group = target(&link)?.ok_or_else(|| VfioError::NoGroup(name.clone()))?;
        let number = group.parse().map_err(|_| VfioError::Unexpected { path: link, text: group })?;
        HostDevice::group(sys, number)
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> &HostKind {
        &self.kind
    }

    /// Whether it is a device of PCI Express.
    #[must_use]
    pub fn is_express(&self) -> bool {
        self.express
    }

    /// `None` for a bridge, which stays with the host and harms nobody.
    fn read(sys: &Path, name: &str) -> Result<Option<HostDevice>, VfioError> {
        let directory = directory(sys, name)?;
        if !is_pci_address(name) {
            return mediated(directory).map(Some);
        }
        let class = number(&directory.join("class"))?;
        if class >> 8 == BRIDGE {
            return Ok(None);
        }
        match target(&directory.join("driver"))? {
            Some(driver) if is_vfio(&driver) => {}
            driver => return Err(VfioError::Driver { address: name.to_owned(), driver }),
        }
        // Not more than 16 bits, or the kernel is not Linux.
        let id = |file: &str| number(&directory.join(file)).map(|id| id as u16);
        let (vendor, device) = (id("vendor")?, id("device")?);
        let kind = HostKind::Pci { address: name.to_owned(), vendor, device, class };
        Ok(Some(HostDevice { kind, express: is_express(&directory)? }))
    }
}

/// What the host calls it.
impl fmt::Display for HostDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            HostKind::Pci { address, .. } => f.write_str(address),
            HostKind::Mediated { directory } | HostKind::Ap { directory, .. } => {
                write!(f, "{}", directory.display())
            }
        }
    }
}

fn mediated(directory: PathBuf) -> Result<HostDevice, VfioError> {
    let api = directory.join("mdev_type/device_api");
    match text(&api)?.as_str() {
        "vfio-pci" => {
            // It is below the device that it is a part of.
            let own = fs::canonicalize(&directory).map_err(unreadable(&directory))?;
            let express = own.parent().map_or(Ok(false), is_express)?;
            Ok(HostDevice { kind: HostKind::Mediated { directory }, express })
        }
        "vfio-ap" => {
            let queues = text(&directory.join("matrix"))?.lines().map(str::to_owned).collect();
            Ok(HostDevice { kind: HostKind::Ap { directory, queues }, express: false })
        }
        other => Err(VfioError::Unexpected { text: other.to_owned(), path: api }),
    }
}

/// Drivers of VFIO for certain devices are called after both: `mlx5_vfio_pci`.
fn is_vfio(driver: &str) -> bool {
    driver.replace('_', "-").ends_with("vfio-pci")
}

fn is_express(directory: &Path) -> Result<bool, VfioError> {
    let config = directory.join("config");
    Ok(fs::metadata(&config).map_err(unreadable(&config))?.len() > CONVENTIONAL)
}

/// The directory of a device, whose name is looked at first as it becomes part of a path.
fn directory(sys: &Path, name: &str) -> Result<PathBuf, VfioError> {
    let bus = match name {
        name if is_pci_address(name) => "pci",
        name if is_uuid(name) => "mdev",
        name => return Err(VfioError::Name(name.to_owned())),
    };
    Ok(sys.join("bus").join(bus).join("devices").join(name))
}

/// `0000:01:00.0`.
fn is_pci_address(name: &str) -> bool {
    is_like(name, "xxxx:xx:xx.7")
}

fn is_uuid(name: &str) -> bool {
    is_like(name, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")
}

/// Whether there is a hexadecimal digit for each `x`, an octal one for each `7`, and everything else as it is.
fn is_like(name: &str, form: &str) -> bool {
    let fits = |(found, wanted): (char, char)| match wanted {
        'x' => found.is_ascii_digit() || ('a'..='f').contains(&found),
        '7' => found.is_digit(8),
        other => found == other,
    };
    name.len() == form.len() && name.chars().zip(form.chars()).all(fits)
}

fn names(directory: &Path) -> Result<Vec<String>, VfioError> {
    let entries = fs::read_dir(directory).map_err(unreadable(directory))?;
    let name = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(unreadable(directory))
    };
    entries.map(name).collect()
}

/// The last name of what a link leads to, if there is a link.
fn target(link: &Path) -> Result<Option<String>, VfioError> {
    match fs::read_link(link) {
        Ok(path) => Ok(path.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The device itself has to be there.
            let device = link.parent().unwrap_or(link);
            fs::metadata(device).map_err(unreadable(device)).map(|_| None)
        }
        Err(error) => Err(unreadable(link)(error)),
    }
}

fn text(path: &Path) -> Result<String, VfioError> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(unreadable(path))
}

/// `0x030000`.
fn number(path: &Path) -> Result<u32, VfioError> {
    let text = text(path)?;
    let digits = text.strip_prefix("0x").and_then(|digits| u32::from_str_radix(digits, 16).ok());
    digits.ok_or_else(|| VfioError::Unexpected { path: path.to_owned(), text })
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> VfioError {
    let path = path.to_owned();
    move |source| VfioError::Unreadable { path: path.clone(), source }
}
