//! Places for PCI devices that come later: bridges and root ports.

use std::fs;
use std::path::Path;

use super::error::SpecError;

/// Most bridges: each takes a slot of the root bus.
const MOST_BRIDGES: u32 = 5;
/// Most root ports, likewise.
const MOST_ROOT_PORTS: u32 = 16;

/// Most ports of a switch.
const MOST_SWITCH_PORTS: u32 = 16;
/// The slot of the root bus with the first bridge; the others follow. The agents in the field find a device by its
/// bridge's slot.
pub(crate) const FIRST_BRIDGE: u8 = 2;
/// The slot of the first root port, behind those of all bridges there can be.
pub(crate) const FIRST_ROOT_PORT: u8 = FIRST_BRIDGE + MOST_BRIDGES as u8;
/// Slots of a bridge. Slot 0 is the bridge's own business.
pub(crate) const BRIDGE_SLOTS: std::ops::RangeInclusive<u8> = 1..=30;

/// Where the kernel shows the host's PCI devices.
pub const HOST_DEVICES: &str = "/sys/bus/pci/devices";

/// Address space for a device that has not come yet, unless a bigger one may: 2 MiB.
const USUAL: u64 = 2 << 20;

/// What a machine has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciPlaces {
    bridges: u32,
    root_ports: u32,
    switch_ports: u32,
    window: Window,
}

impl PciPlaces {
    /// `bridges` for 30 conventional devices each, and `root_ports` for one PCI Express device each, whose memory
    /// fits `window`.
    pub fn new(bridges: u32, root_ports: u32, window: Window) -> Result<PciPlaces, SpecError> {
        if bridges <= MOST_BRIDGES && root_ports <= MOST_ROOT_PORTS {
            return Ok(PciPlaces { bridges, root_ports, switch_ports: 0, window });
        }
        Err(SpecError::PciPlaces { bridges, root_ports })
    }

    /// The same with a switch of that many ports, which takes one place on the root bus; none is no switch.
    pub fn with_switch(self, ports: u32) -> Result<PciPlaces, SpecError> {
        if ports <= MOST_SWITCH_PORTS {
            return Ok(PciPlaces { switch_ports: ports, ..self });
        }
        Err(SpecError::SwitchPorts(ports))
    }

    /// Ports of the switch; 0 where there is none.
    #[must_use]
    pub fn switch_ports(self) -> u32 {
        self.switch_ports
    }

    /// Bridges.
    #[must_use]
    pub fn bridges(self) -> u32 {
        self.bridges
    }

    /// Root ports.
    #[must_use]
    pub fn root_ports(self) -> u32 {
        self.root_ports
    }

    /// Address space behind each root port.
    #[must_use]
    pub fn window(self) -> Window {
        self.window
    }
}

/// Address space that the firmware keeps free behind a root port, in bytes. A device whose memory does not fit cannot
/// be plugged in later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Below 4 GiB.
    pub mem: u64,
    /// Prefetchable, of 64 bits.
    pub pref64: u64,
}

/// Room for a usual device.
impl Default for Window {
    fn default() -> Window {
        Window { mem: 2 * USUAL, pref64: 2 * USUAL }
    }
}

impl Window {
    /// As much for each of `ports`, of which there is at least one. A window begins at a multiple of its size.
    #[must_use]
    pub fn times(self, ports: u32) -> Window {
        let ports = u64::from(ports);
        Window {
            mem: (self.mem * ports).next_power_of_two(),
            pref64: (self.pref64 * ports).next_power_of_two(),
        }
    }

    /// Enough for any graphics or compute device of the host at `devices` (see [`HOST_DEVICES`]): those are the ones
    /// that are passed through and whose memory is large.
    #[must_use]
    pub fn for_host(devices: &Path) -> Window {
        let found = fs::read_dir(devices).into_iter().flatten().flatten();
        let all = found.filter_map(|device| of_accelerator(&device.path()));
        let (mem, pref64) = all.fold((0, 0), |most, one| (most.0.max(one.0), most.1.max(one.1)));
        // Twice, as a window has to begin at a multiple of its largest part.
        Window {
            mem: 2 * mem.next_power_of_two().max(USUAL),
            pref64: 2 * pref64.next_power_of_two().max(USUAL),
        }
    }
}

/// The memory of a device of NVIDIA's that computes, below 4 GiB and above; `None` for any other device.
fn of_accelerator(device: &Path) -> Option<(u64, u64)> {
    let read = |name: &str| fs::read_to_string(device.join(name)).ok();
    let class = number(read("class")?.trim())?;
    // Display controllers, among them 3D controllers (PCI Code and ID Assignment, class 03).
    if number(read("vendor")?.trim())? != 0x10de || class >> 16 != 0x03 {
        return None;
    }
    let regions = read("resource")?;
    let sizes = regions.lines().filter_map(|line| {
        let mut words = line.split_whitespace().filter_map(number);
        let (start, end, flags) = (words.next()?, words.next()?, words.next()?);
        // Flags of the kernel's ioport.h: memory, and 64 bits.
        (end > start && flags & 0x200 != 0).then_some((end - start + 1, flags & 0x10_0000 != 0))
    });
    Some(sizes.fold(
        (0, 0),
        |(mem, pref64), (size, wide)| {
            if wide { (mem, pref64 + size) } else { (mem + size, pref64) }
        },
    ))
}

fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(devices: &Path, name: &str, vendor: &str, class: &str, resource: &str) {
        let dir = devices.join(name);
        fs::create_dir(&dir).unwrap();
        for (file, text) in [("vendor", vendor), ("class", class), ("resource", resource)] {
            fs::write(dir.join(file), format!("{text}\n")).unwrap();
        }
    }

    /// A compute device: 16 MiB below 4 GiB, 16 GiB and 32 MiB above, an I/O port, a ROM that is off.
    const REGIONS: &str = "\
0x00000000a4000000 0x00000000a4ffffff 0x0000000000040200
0x0000010000000000 0x00000103ffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000010400000000 0x0000010401ffffff 0x000000000014220c
0x0000000000003000 0x000000000000307f 0x0000000000040101";

    #[test]
    fn a_host_without_such_devices_gets_the_usual_window() {
        let devices = tempfile::tempdir().unwrap();
        device(devices.path(), "0000:00:02.0", "0x8086", "0x030000", REGIONS);
        device(devices.path(), "0000:00:03.0", "0x10de", "0x040300", REGIONS);
        let usual = Window { mem: 4 << 20, pref64: 4 << 20 };
        assert_eq!(Window::for_host(devices.path()), usual);
        assert_eq!(Window::for_host(Path::new("/nonexistent")), usual);
    }

    #[test]
    fn the_window_fits_the_largest_device() {
        let devices = tempfile::tempdir().unwrap();
        device(devices.path(), "0000:01:00.0", "0x10de", "0x030200", REGIONS);
        device(devices.path(), "0000:02:00.0", "0x10de", "0x030000", "0x0 0xffff 0x200");
        let window = Window::for_host(devices.path());
        assert_eq!(window, Window { mem: 32 << 20, pref64: 64 << 30 });
    }

    #[test]
    fn there_is_an_end_to_places() {
        let window = Window { mem: 1, pref64: 1 };
        assert!(PciPlaces::new(5, 16, window).is_ok());
        assert!(PciPlaces::new(6, 0, window).is_err());
        assert!(PciPlaces::new(0, 17, window).is_err());
        assert!(PciPlaces::new(0, 0, window).unwrap().with_switch(16).is_ok());
        assert!(PciPlaces::new(0, 0, window).unwrap().with_switch(17).is_err());
    }
}
