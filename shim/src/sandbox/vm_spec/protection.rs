//! What memory that is kept from the host leaves of a machine.

use vmm::spec::{Capabilities, Firmware, Protection};

/// What is left of the board: nothing comes later to a guest that is measured as it starts.
pub(super) fn limit(board: Capabilities, protection: Option<&Protection>) -> Capabilities {
    let open = protection.is_none();
    Capabilities {
        cpu_hot_plug: board.cpu_hot_plug && open,
        memory_devices: board.memory_devices && open,
        ..board
    }
}

/// SEV starts from flash memory, so that is where its firmware is.
pub(super) fn firmware(configured: &Firmware, protection: Option<&Protection>) -> Firmware {
    match (configured, protection) {
        (Firmware::Bios(path), Some(Protection::Sev { .. })) => {
            Firmware::Flash { code: path.clone(), variables: None }
        }
        (firmware, _) => firmware.clone(),
    }
}

#[cfg(test)]
mod tests {
    use vmm::spec::CBit;

    use super::*;

    #[test]
    fn a27_sev_starts_from_flash_memory_and_the_others_do_not() {
        let bios = Firmware::Bios("/fw".into());
        let c_bit = CBit::new(51).unwrap();
        let sev = Protection::Sev { c_bit, encrypted_state: false };
        let snp = Protection::Snp { c_bit, policy: 0, identity: None };
        let flash = Firmware::Flash { code: "/fw".into(), variables: None };
        assert_eq!(firmware(&bios, Some(&sev)), flash);
        for protection in [None, Some(&snp), Some(&Protection::Tdx { quotes: None })] {
            assert_eq!(firmware(&bios, protection), bios);
        }
    }
}
