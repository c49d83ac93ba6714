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
        /// What it is a part of, by the name on its bus.
        parent: String,
    },
    /// A matrix of adjunct processors of IBM Z.
    Ap {
        /// Its directory in sysfs.
        directory: PathBuf,
        /// What is in the matrix: numbers of adapter and domain, `05.0004`.
        queues: Vec<String>,
    },
}

/// What a device file of VFIO's stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceFile {
    /// `/dev/vfio/vfio`, by which a program uses groups that it was given.
    Container,
    /// Devices: those of a group, or the one that has a file of its own.
    Devices {
        /// The number of the group, or the name of the one.
        name: String,
        /// What they are.
        devices: Vec<HostDevice>,
    },
}

impl DeviceFile {
    /// What the character device with these numbers stands for, if it is one of VFIO's. `sys` is [`SYSFS`].
    ///
    /// # Errors
    /// [`VfioError`] if one of its devices, or of their group, is in use by the host.
    pub fn of(sys: &Path, major: i64, minor: i64) -> Result<Option<DeviceFile>, VfioError> {
        let event = sys.join(format!("dev/char/{major}:{minor}/uevent"));
        let event = match fs::read_to_string(&event) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(unreadable(&event))?,
        };
        let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME=vfio/"));
        let file = |name: &str, devices| DeviceFile::Devices { name: name.to_owned(), devices };
        match (name, name.and_then(|name| name.strip_prefix("devices/"))) {
            (None, _) => Ok(None),
            (Some("vfio"), _) => Ok(Some(DeviceFile::Container)),
            (_, Some(name)) => HostDevice::alone(sys, name).map(|device| Some(file(name, device))),
            (Some(name), None) => {
                // Without an IOMMU it is `noiommu-0`.
                let number = name.parse().map_err(|_| VfioError::NoGroup(format!("/dev/vfio/{name}")))?;
                HostDevice::group(sys, number).map(|devices| Some(file(name, devices)))
            }
        }
    }
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

    /// The one device with the file `/dev/vfio/devices/<name>`. The host may use no other of its group either.
    fn alone(sys: &Path, name: &str) -> Result<Vec<HostDevice>, VfioError> {
        let link = sys.join("class/vfio-dev").join(name).join("device");
        let device = target(&link)?.ok_or_else(|| VfioError::Name(name.to_owned()))?;
        let mut devices = HostDevice::with_its_group(sys, &device)?;
        devices.retain(|other| other.name() == Some(device.as_str()));
        Ok(devices)
    }

    /// What its bus calls it.
    fn name(&self) -> Option<&str> {
        match &self.kind {
            HostKind::Pci { address, .. } => Some(address),
            HostKind::Mediated { directory, .. } | HostKind::Ap { directory, .. } => {
                directory.file_name()?.to_str()
            }
        }
    }

    /// The PCI address that programs of the host know it by, which of a mediated device is that of its parent; none for
    /// what is on no PCI bus.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        match &self.kind {
            HostKind::Pci { address, .. } => Some(address),
            HostKind::Mediated { parent, .. } => {
                Some(parent).filter(|name| is_pci_address(name)).map(String::as_str)
            }
            HostKind::Ap { .. } => None,
        }
    }

    /// What the device at `address` is once VFIO has it, which a driver of the host's may have still. Of its group the host
    /// may use no other.
    ///
    /// # Errors
    /// [`VfioError`] if there is no such device, nothing keeps it from the host's memory, or the host uses another one.
    pub fn once_bound(sys: &Path, address: &str) -> Result<HostDevice, VfioError> {
        let link = directory(sys, address)?.join("iommu_group");
        let group = target(&link)?.ok_or_else(|| VfioError::NoGroup(address.to_owned()))?;
        let mut found = None;
        for name in names(&sys.join(format!("kernel/iommu_groups/{group}/devices")))? {
            if name == address {
                found = HostDevice::read_bound(sys, &name, true)?;
            } else {
                HostDevice::read(sys, &name)?;
            }
        }
        found.ok_or_else(|| VfioError::NoGroup(address.to_owned()))
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
        HostDevice::read_bound(sys, name, false)
    }

    /// The same for one that `will_be` VFIO's, whose it is now.
    fn read_bound(sys: &Path, name: &str, will_be: bool) -> Result<Option<HostDevice>, VfioError> {
        let directory = directory(sys, name)?;
        if !is_pci_address(name) {
            return mediated(directory).map(Some);
        }
        let class = number(&directory.join("class"))?;
        if class >> 8 == BRIDGE {
            return Ok(None);
        }
        match target(&directory.join("driver"))? {
            Some(driver) if will_be || is_vfio(&driver) => {}
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
            HostKind::Mediated { directory, .. } | HostKind::Ap { directory, .. } => {
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
            let parent = own.parent().and_then(Path::file_name).unwrap_or_default();
            let parent = parent.to_string_lossy().into_owned();
            Ok(HostDevice { kind: HostKind::Mediated { directory, parent }, express })
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
