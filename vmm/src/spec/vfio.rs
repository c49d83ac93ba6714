//! Devices of the host in the guest: when they come, and to which places.

use super::error::SpecError;
use super::{BRIDGE_SLOTS, FIRST_BRIDGE, FIRST_ROOT_PORT, PciPlaces, VmSpec};
use crate::plug::{DeviceId, GuestAddress, PciAddress, PciPath, Plugged};
use crate::vfio::{HostDevice, HostKind};

/// When devices of the host come to a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PassThrough {
    /// Never.
    #[default]
    Never,
    /// With the machine, and no more later.
    Cold {
        /// The devices, in the order they take their places.
        devices: Vec<HostDevice>,
        /// Where they go.
        port: VfioPort,
    },
    /// While the guest runs.
    Hot(VfioPort),
}

/// Where a device of the host goes. One of conventional PCI has no other place than a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VfioPort {
    /// A bridge, to which a device of PCI Express is a conventional one.
    Bridge,
    /// A root port.
    Root,
    /// A port of the switch.
    Switch,
}

/// A place that one device of the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seat {
    Slot(PciAddress),
    RootPort(u32),
    SwitchPort(u32),
}

/// What a machine has no more of, and what would give it more.
#[derive(Debug)]
pub(crate) struct NoSeat {
    pub(crate) what: &'static str,
    pub(crate) remedy: &'static str,
}

impl PciPlaces {
    /// The first place for `device` that is not among `taken`; `None` for one that is on no bus.
    pub(crate) fn seat(
        self,
        device: &HostDevice,
        port: VfioPort,
        taken: impl Fn(&Seat) -> bool,
    ) -> Result<Option<Seat>, NoSeat> {
        let free = |seat: &Seat| !taken(seat);
        let (seat, what, remedy) = match (device.kind(), port) {
            (HostKind::Ap { .. }, _) => return Ok(None),
            (_, VfioPort::Root) if device.is_express() => {
                let seat = (0..self.root_ports()).map(Seat::RootPort).find(free);
                (seat, "PCI Express root port", "raise pcie_root_port")
            }
            (_, VfioPort::Switch) if device.is_express() => {
                let seat = (0..self.switch_ports()).map(Seat::SwitchPort).find(free);
                (seat, "port of a PCI Express switch", "raise pcie_switch_port")
            }
            _ => {
                let bridges = (FIRST_BRIDGE..).take(self.bridges() as usize);
                let slots =
                    bridges.flat_map(|bridge| BRIDGE_SLOTS.map(move |slot| PciAddress { bridge, slot }));
                (slots.map(Seat::Slot).find(free), "PCI slot", "raise default_bridges")
            }
        };
        seat.map(Some).ok_or(NoSeat { what, remedy })
    }

    /// Where a guest finds what is there.
    fn path(self, seat: Seat) -> PciPath {
        // There are at most 16 of each.
        let root_port = |number: u32| FIRST_ROOT_PORT + number as u8;
        match seat {
            Seat::Slot(PciAddress { bridge, slot }) => PciPath::new([bridge, slot]),
            Seat::RootPort(number) => PciPath::new([root_port(number), 0]),
            // The switch is behind the last root port: its port towards that, then the one for the device.
            Seat::SwitchPort(number) => PciPath::new([root_port(self.root_ports()), 0, number as u8, 0]),
        }
    }
}

impl VmSpec {
    /// The devices of the host that the machine starts with, and where the guest will find them.
    ///
    /// # Errors
    /// [`SpecError`] if there are more of them than places, or one of them twice.
    pub fn passed_through(&self) -> Result<Vec<Plugged>, SpecError> {
        let at = |seat: Option<Seat>| match seat {
            Some(seat) => GuestAddress::Path(self.pci.path(seat)),
            None => GuestAddress::Ap,
        };
        let seats = self.seats()?.into_iter().enumerate();
        Ok(seats.map(|(number, (_, seat))| Plugged { id: cold_id(number), at: at(seat) }).collect())
    }

    /// The same devices with their places.
    pub(crate) fn seats(&self) -> Result<Vec<(&HostDevice, Option<Seat>)>, SpecError> {
        let PassThrough::Cold { devices, port } = &self.pass_through else { return Ok(Vec::new()) };
        let mut seats: Vec<(&HostDevice, Option<Seat>)> = Vec::new();
        for device in devices {
            if seats.iter().any(|(other, _)| *other == device) {
                return Err(SpecError::HostDeviceTwice(device.to_string()));
            }
            let taken = |seat: &Seat| seats.iter().any(|(_, other)| *other == Some(*seat));
            let seat = self.pci.seat(device, *port, taken);
            let full =
                |NoSeat { what, remedy }| SpecError::NoPlace { device: device.to_string(), what, remedy };
            seats.push((device, seat.map_err(full)?));
        }
        Ok(seats)
    }
}

/// The name of a device that the machine starts with.
pub(crate) fn cold_id(number: usize) -> DeviceId {
    DeviceId(format!("vfio{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Window;
    use crate::vfio::tests::Sysfs;

    fn places() -> PciPlaces {
        PciPlaces::new(1, 2, Window::default()).unwrap().with_switch(1).unwrap()
    }

    fn seat(express: bool, port: VfioPort, taken: &[Seat]) -> Result<Seat, String> {
        let seat = places().seat(&Sysfs::one(express), port, |seat| taken.contains(seat));
        seat.map(Option::unwrap).map_err(|full| format!("{}: {}", full.what, full.remedy))
    }

    fn slot(slot: u8) -> Seat {
        Seat::Slot(PciAddress { bridge: FIRST_BRIDGE, slot })
    }

    #[test]
    fn b11_a_device_goes_where_the_operator_wants_it_and_a_conventional_one_to_a_bridge() {
        assert_eq!(seat(true, VfioPort::Bridge, &[]), Ok(slot(1)));
        assert_eq!(seat(true, VfioPort::Root, &[]), Ok(Seat::RootPort(0)));
        assert_eq!(seat(true, VfioPort::Switch, &[]), Ok(Seat::SwitchPort(0)));
        assert_eq!(seat(false, VfioPort::Root, &[slot(1)]), Ok(slot(2)));
        assert_eq!(seat(true, VfioPort::Root, &[Seat::RootPort(0)]), Ok(Seat::RootPort(1)));
    }

    #[test]
    fn b11_places_that_are_all_taken_say_what_gives_more() {
        let taken = [Seat::RootPort(0), Seat::RootPort(1), Seat::SwitchPort(0)];
        let full = |port| seat(true, port, &taken).unwrap_err();
        assert_eq!(full(VfioPort::Root), "PCI Express root port: raise pcie_root_port");
        assert_eq!(full(VfioPort::Switch), "port of a PCI Express switch: raise pcie_switch_port");
        let slots: Vec<_> = (1..=30).map(slot).collect();
        assert_eq!(seat(false, VfioPort::Root, &slots).unwrap_err(), "PCI slot: raise default_bridges");
    }

    #[test]
    fn b11_a_guest_finds_a_device_by_the_slots_on_the_way_to_it() {
        let path = |seat| places().path(seat).to_string();
        assert_eq!(path(slot(0x1e)), "02/1e");
        assert_eq!(path(Seat::RootPort(1)), "08/00");
        assert_eq!(path(Seat::SwitchPort(0)), "09/00/00/00");
    }
}
