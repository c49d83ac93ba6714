//! Where a network interface is plugged in.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where the kernel shows devices.
const SYS: &str = "/sys";
/// Slots of a PCI bus.
const SLOTS: u8 = 32;
/// A device behind a root port and both ports of a switch.
const DEEPEST: usize = 4;

/// The slot of each bridge on the way from the root bus, then the interface's own: `02/01`, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place(Vec<u8>);

/// Text that is no such place.
#[derive(Debug)]
pub(super) struct NoPlace;

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wants slots in hexadecimal, as 02/01")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(|slot| format!("{slot:02x}")).collect::<Vec<_>>().join("/"))
    }
}

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let slot = |part: &str| match part.len() {
            2 => u8::from_str_radix(part, 16).ok().filter(|slot| *slot < SLOTS),
            _ => None,
        };
        let slots = text.split('/').map(slot).collect::<Option<Vec<u8>>>().ok_or(NoPlace)?;
        if slots.len() > DEEPEST { Err(NoPlace) } else { Ok(Self(slots)) }
    }
}

impl Place {
    /// Whether the interface `name` is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.has_below(Path::new(SYS), name)
    }

    /// The same where the kernel shows devices below `sys`.
    pub(super) fn has_below(&self, sys: &Path, name: &str) -> bool {
        let Ok(device) = fs::canonicalize(sys.join("class/net").join(name).join("device")) else {
            return false;
        };
        let Some(pci) = self.device(sys).and_then(|device| fs::canonicalize(device).ok()) else {
            return false;
        };
        // A virtio device is below its PCI device, one of another kind is it.
        device.starts_with(pci)
    }

    /// The PCI device there.
    fn device(&self, sys: &Path) -> Option<PathBuf> {
        let (first, others) = self.0.split_first()?;
        let root = sys.join(format!("bus/pci/devices/0000:00:{first:02x}.0"));
        others.iter().try_fold(root, |bridge, slot| {
            let end = format!(":{slot:02x}.0");
            let parts = fs::read_dir(bridge).ok()?.flatten().map(|entry| entry.path());
            let is_device = |path: &PathBuf| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.starts_with("0000:") && name.ends_with(&end)
            };
            let mut devices = parts.filter(is_device);
            devices.next()
        })
    }
}
