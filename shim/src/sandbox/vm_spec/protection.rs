//! Memory that is kept from the host.

use configuration::Confidential;
use vmm::{
    protection::Available,
    spec::{CBit, Capabilities, Firmware, Protection},
};

use super::unusable;
use crate::error::{Error, Result};

/// What is asked for, by what the host has; `c_bit` is its processor's.
pub(super) fn of(asked: &Confidential, host: Available, c_bit: Option<u32>) -> Result<Protection> {
    let c_bit = || CBit::new(c_bit.unwrap_or(0)).map_err(unusable("confidential_guest"));
    match (host.amd, asked.snp) {
        (Some(amd), true) if amd.snp => Ok(Protection::Snp {
            c_bit: c_bit()?,
            policy: asked.snp_policy,
            identity: asked.snp_identity.clone(),
        }),
        (Some(amd), false) => Ok(Protection::Sev { c_bit: c_bit()?, encrypted_state: amd.encrypted_state }),
        (None, false) if host.tdx => Ok(Protection::Tdx { quotes: asked.tdx_quotes }),
        (_, true) => Err(absent("sev_snp_guest", "no SEV-SNP (see the kernel's kvm_amd parameter sev_snp)")),
        (None, false) => Err(absent("confidential_guest", "neither TDX nor SEV")),
    }
}

fn absent(key: &str, what: &str) -> Error {
    Error::InvalidArgument(format!(
        "hypervisor.qemu.{key}: this host has {what}; unset it, or the guest's memory would not be protected"
    ))
}

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
    use vmm::{protection::Amd, spec::SnpIdentity};

    use super::*;

    fn asked(snp: bool) -> Confidential {
        Confidential { snp, snp_identity: None, snp_policy: 7, tdx_quotes: Some(4050) }
    }

    fn amd(snp: bool) -> Available {
        Available { tdx: false, amd: Some(Amd { encrypted_state: true, snp }) }
    }

    #[test]
    fn a27_the_host_s_processor_decides_by_what() {
        let tdx = Available { tdx: true, amd: None };
        let c_bit = CBit::new(51).unwrap();
        for (snp, host, expected) in [
            (false, tdx, Protection::Tdx { quotes: Some(4050) }),
            (false, amd(true), Protection::Sev { c_bit, encrypted_state: true }),
            (true, amd(true), Protection::Snp { c_bit, policy: 7, identity: None }),
        ] {
            assert_eq!(of(&asked(snp), host, Some(51)).unwrap(), expected);
        }
    }

    #[test]
    fn a27_an_identity_of_the_operators_is_the_machines() {
        let identity = SnpIdentity::new(&"A".repeat(128), &format!("{}==", "B".repeat(5462))).ok();
        let asked = Confidential { snp_identity: identity.clone(), ..asked(true) };
        let Protection::Snp { identity: got, .. } = of(&asked, amd(true), Some(51)).unwrap() else {
            panic!("no protection by SEV-SNP");
        };
        assert!(got.is_some() && got == identity);
    }

    #[test]
    fn a27_a_host_without_it_runs_no_guest_unprotected() {
        let tdx = Available { tdx: true, amd: None };
        for (snp, host, what) in [
            (false, Available::default(), "neither TDX nor SEV"),
            (true, tdx, "no SEV-SNP"),
            (true, amd(false), "no SEV-SNP"),
        ] {
            let error = of(&asked(snp), host, Some(51)).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        assert!(of(&asked(false), amd(false), None).is_err());
    }
}
