//! Disks, by where they are plugged in.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use agent_protocol::agent::{Device, Storage};

use crate::error::Error;

/// Slots of a PCI bus.
const SLOTS: u8 = 32;

/// A place on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A slot of a bridge in a slot of the root bus.
    Pci { bridge: u8, slot: u8 },
    /// A unit of the SCSI controller.
    Scsi { target: u8, lun: u8 },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci { bridge, slot } => write!(f, "PCI {bridge:02x}/{slot:02x}"),
            Self::Scsi { target, lun } => write!(f, "SCSI {target}:{lun}"),
        }
    }
}

impl Address {
    /// Where the disk of `storage` is, if it is a disk and not named by its device file.
    pub(super) fn of(storage: &Storage) -> Result<Option<Self>, Error> {
        if storage.source.starts_with("/dev/") {
            return Ok(None);
        }
        let address = Self::parse(&storage.driver, &storage.source);
        address.map_err(|what| Error::invalid(format!("storage {}: source {what}", storage.driver)))
    }

    /// Where the disk is that a container gets as a device.
    pub(super) fn of_device(device: &Device) -> Result<Self, Error> {
        let what = |what: &str| Error::invalid(format!("device {}: {what}", device.container_path));
        let address = Self::parse(&device.type_, &device.id).map_err(|wrong| what(&format!("id {wrong}")))?;
        address.ok_or_else(|| {
            what(&format!("type {:?}: wants blk, scsi, vfio-pci or vfio-pci-gk", device.type_))
        })
    }

    fn parse(driver: &str, place: &str) -> Result<Option<Self>, String> {
        let (address, wanted) = match driver {
            "blk" => (pci(place), "two slots in hexadecimal, as 02/01"),
            "scsi" => (scsi(place), "target and unit, as 0:1"),
            _ => return Ok(None),
        };
        address.map(Some).ok_or_else(|| format!("{place:?}: wants {wanted}"))
    }

    /// A slot of the root bus, and one of the bridge in it.
    pub(super) fn of_slots(path: &[u32]) -> Result<Self, Error> {
        let slot = |number: u32| u8::try_from(number).ok().filter(|number| *number < SLOTS);
        let address = match path {
            [bridge, device] => slot(*bridge).zip(slot(*device)),
            _ => None,
        };
        let (bridge, slot) = address
            .ok_or_else(|| Error::invalid(format!("PCI path {path:?}: wants two slots, as [2, 1]")))?;
        Ok(Self::Pci { bridge, slot })
    }

    /// The drivers without which there is no disk, those needed first.
    pub(super) fn drivers(self) -> &'static [&'static str] {
        match self {
            Self::Pci { .. } => &["virtio_blk"],
            Self::Scsi { .. } => &["virtio_scsi", "sd_mod"],
        }
    }

    /// Makes the kernel look for the disk, if it is one of those that it looks for only when asked: the host has SCSI
    /// controllers not scanned (`scsi_mod.scan=none`).
    pub(super) fn look_for(self, sys: &Path) {
        let Self::Scsi { target, lun } = self else { return };
        for host in entries(&sys.join("class/scsi_host")) {
            let scan = host.join("scan");
            if let Err(error) = fs::write(&scan, format!("0 {target} {lun}")) {
                ::log::warn!("look for {self} by {}: {error}", scan.display());
            }
        }
    }

    /// The name of the disk there, as the kernel shows it below `sys`.
    pub(super) fn find(self, sys: &Path) -> Option<String> {
        match self {
            Self::Pci { bridge, slot } => {
                let bridge = sys.join(format!("bus/pci/devices/0000:00:{bridge:02x}.0"));
                let slot = format!(":{slot:02x}.0");
                let device =
                    entries(&bridge).into_iter().find(|path| is_pci(path) && ends_with(path, &slot))?;
                entries(&device).iter().find_map(|part| block_device(part))
            }
            Self::Scsi { target, lun } => {
                let unit = format!(":0:{target}:{lun}");
                let devices = entries(&sys.join("bus/scsi/devices"));
                devices.iter().filter(|path| ends_with(path, &unit)).find_map(|path| block_device(path))
            }
        }
    }
}

fn pci(text: &str) -> Option<Address> {
    let (bridge, slot) = text.split_once('/')?;
    let number = |text: &str| u8::from_str_radix(text, 16).ok().filter(|number| *number < SLOTS);
    Some(Address::Pci { bridge: number(bridge)?, slot: number(slot)? })
}

fn scsi(text: &str) -> Option<Address> {
    let (target, lun) = text.split_once(':')?;
    Some(Address::Scsi { target: target.parse().ok()?, lun: lun.parse().ok()? })
}

/// The disk that a device is.
fn block_device(device: &Path) -> Option<String> {
    let disk = entries(&device.join("block")).into_iter().next()?;
    disk.file_name()?.to_str().map(str::to_owned)
}

pub(super) fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

pub(super) fn is_pci(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"0000:"))
}

pub(super) fn ends_with(path: &Path, end: &str) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(end.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(driver: &str, source: &str) -> Storage {
        Storage { driver: driver.into(), source: source.into(), ..Storage::default() }
    }

    #[test]
    fn a_disk_is_told_by_its_place() {
        let of = |driver, source| Address::of(&storage(driver, source)).unwrap();
        assert_eq!(of("blk", "02/1e"), Some(Address::Pci { bridge: 2, slot: 30 }));
        assert_eq!(of("scsi", "1:20"), Some(Address::Scsi { target: 1, lun: 20 }));
        assert_eq!(of("blk", "/dev/vda"), None);
        assert_eq!(of("9p", "kataShared"), None);
    }

    #[test]
    fn what_is_no_place_is_refused_with_what_is() {
        for source in ["", "02", "2/20", "../01", "g/1", "02/01/00"] {
            let error = Address::of(&storage("blk", source)).unwrap_err().to_string();
            assert!(error.contains("02/01"), "{error}");
        }
        assert!(Address::of(&storage("scsi", "0:256")).is_err());
        for path in [&[][..], &[2], &[2, 32], &[2, 1, 0], &[u32::MAX, 1]] {
            assert!(Address::of_slots(path).is_err(), "{path:?}");
        }
        assert_eq!(Address::of_slots(&[2, 1]).unwrap(), Address::Pci { bridge: 2, slot: 1 });
    }

    #[test]
    fn each_scsi_controller_is_asked_for_a_unit() {
        let sys = tempfile::tempdir().unwrap();
        let hosts = ["host0", "host1"].map(|host| sys.path().join("class/scsi_host").join(host));
        for host in &hosts {
            fs::create_dir_all(host).unwrap();
        }
        Address::Pci { bridge: 2, slot: 1 }.look_for(sys.path());
        assert!(hosts.iter().all(|host| !host.join("scan").exists()));
        Address::Scsi { target: 0, lun: 7 }.look_for(sys.path());
        assert!(hosts.iter().all(|host| fs::read_to_string(host.join("scan")).unwrap() == "0 0 7"));
    }

    #[test]
    fn a_disk_is_found_when_its_driver_has_made_it() {
        let sys = tempfile::tempdir().unwrap();
        let device = sys.path().join("bus/pci/devices/0000:00:02.0/0000:01:01.0");
        let address = Address::Pci { bridge: 2, slot: 1 };
        fs::create_dir_all(device.join("msi_irqs")).unwrap();
        assert_eq!(address.find(sys.path()), None);
        fs::create_dir_all(device.join("virtio3/block/vdb")).unwrap();
        assert_eq!(address.find(sys.path()).as_deref(), Some("vdb"));
        assert_eq!(Address::Pci { bridge: 2, slot: 17 }.find(sys.path()), None);

        let address = Address::Scsi { target: 0, lun: 1 };
        fs::create_dir_all(sys.path().join("bus/scsi/devices/2:0:0:1/block/sda")).unwrap();
        assert_eq!(address.find(sys.path()).as_deref(), Some("sda"));
        assert_eq!(Address::Scsi { target: 0, lun: 11 }.find(sys.path()), None);
    }
}
