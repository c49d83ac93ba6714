//! Where there is room for a device. What is taken is told by the devices that are there, so no place can get lost.

use crate::plug::{GuestAddress, PciAddress, PlugError, ScsiAddress};
use crate::spec::{BRIDGE_SLOTS, FIRST_BRIDGE};

/// A place that one device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BusAddress {
    Pci(PciAddress),
    Scsi(ScsiAddress),
}

impl From<BusAddress> for GuestAddress {
    fn from(address: BusAddress) -> GuestAddress {
        match address {
            BusAddress::Pci(address) => GuestAddress::Pci(address),
            BusAddress::Scsi(address) => GuestAddress::Scsi(address),
        }
    }
}

/// The first place on one of `bridges` that is not among `taken`.
pub(super) fn pci(bridges: u32, taken: &[BusAddress]) -> Result<PciAddress, PlugError> {
    let bridges = (FIRST_BRIDGE..).take(bridges as usize);
    let mut places = bridges.flat_map(|bridge| BRIDGE_SLOTS.map(move |slot| PciAddress { bridge, slot }));
    let full = PlugError::Full { what: "PCI slot", remedy: "raise default_bridges" };
    places.find(|place| !taken.contains(&BusAddress::Pci(*place))).ok_or(full)
}

/// The first unit of the SCSI controller that is not among `taken`.
pub(super) fn scsi(taken: &[BusAddress]) -> Result<ScsiAddress, PlugError> {
    let all = || 0..=u8::MAX;
    let mut units = all().flat_map(|target| all().map(move |lun| ScsiAddress { target, lun }));
    let full = PlugError::Full { what: "SCSI unit", remedy: "the controller has 65536" };
    units.find(|unit| !taken.contains(&BusAddress::Scsi(*unit))).ok_or(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pci_at(bridge: u8, slot: u8) -> PciAddress {
        PciAddress { bridge, slot }
    }

    fn at(bridge: u8, slot: u8) -> BusAddress {
        BusAddress::Pci(pci_at(bridge, slot))
    }

    fn unit(target: u8, lun: u8) -> ScsiAddress {
        ScsiAddress { target, lun }
    }

    #[test]
    fn b7_the_first_free_slot_is_taken_and_given_back_ones_are_used_again() {
        assert_eq!(pci(1, &[]).unwrap(), pci_at(2, 1));
        assert_eq!(pci(1, &[at(2, 1), at(2, 3)]).unwrap(), pci_at(2, 2));
        let first: Vec<_> = (1..=30).map(|slot| at(2, slot)).collect();
        assert_eq!(pci(2, &first).unwrap(), pci_at(3, 1));
    }

    #[test]
    fn a_machine_without_room_says_what_gives_it_more() {
        let full: Vec<_> = (1..=30).map(|slot| at(2, slot)).collect();
        let error = pci(1, &full).unwrap_err().to_string();
        assert_eq!(error, "the machine has no free PCI slot: raise default_bridges");
        assert!(pci(0, &[]).is_err());
    }

    #[test]
    fn b7_scsi_units_fill_one_target_after_the_other() {
        let taken: Vec<_> = (0..=255).map(|lun| BusAddress::Scsi(unit(0, lun))).collect();
        assert_eq!(scsi(&taken[1..]).unwrap(), unit(0, 0));
        assert_eq!(scsi(&taken).unwrap(), unit(1, 0));
    }

    #[test]
    fn addresses_read_as_agents_take_them() {
        assert_eq!(GuestAddress::from(at(2, 0x1e)).to_string(), "02/1e");
        assert_eq!(GuestAddress::from(BusAddress::Scsi(unit(1, 20))).to_string(), "1:20");
        assert_eq!(GuestAddress::Pmem(1).to_string(), "/dev/pmem1");
    }
}
