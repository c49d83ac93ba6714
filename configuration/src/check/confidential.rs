//! Memory that is kept from the host.

use vmm::spec::{CBit, Firmware, Protection, SnpIdentity};

use super::{Checker, is_given, text};
use crate::choice::MachineType;
use crate::raw::RawHypervisor;

const CONFIDENTIAL: &str = "hypervisor.qemu.confidential_guest";
const SNP: &str = "hypervisor.qemu.sev_snp_guest";
const ID_BLOCK: &str = "hypervisor.qemu.snp_id_block";
const ID_AUTH: &str = "hypervisor.qemu.snp_id_auth";
const FIRMWARE: [&str; 3] =
    ["hypervisor.qemu.firmware", "hypervisor.qemu.firmware_volume", "hypervisor.qemu.pflashes"];

impl Checker<'_> {
    /// What protects the guest's memory, by what the host has.
    pub(super) fn protection(&mut self, raw: &RawHypervisor, firmware: &Firmware) -> Option<Protection> {
        if !raw.confidential_guest {
            for (key, set) in [
                (SNP, raw.sev_snp_guest),
                (ID_BLOCK, !raw.snp_id_block.is_empty()),
                (ID_AUTH, !raw.snp_id_auth.is_empty()),
            ] {
                if set {
                    self.warning(key, format!("means nothing without {CONFIDENTIAL}"));
                }
            }
            return None;
        }
        if *firmware == Firmware::BuiltIn && self.sound(&FIRMWARE) {
            let what = "needs firmware that measures the guest, which QEMU's own does not; set hypervisor.qemu.firmware";
            self.problem(CONFIDENTIAL, what.to_owned());
        }
        self.not_with_protected_memory(raw);
        let identity = self.identity(raw);
        let quotes = Some(raw.tdx_quote_generation_service_socket_port).filter(|port| *port != 0);
        let (host, snp) = (self.host.protection, raw.sev_snp_guest);
        match (host.amd, snp) {
            (Some(amd), true) if amd.snp => {
                Some(Protection::Snp { c_bit: self.c_bit()?, policy: raw.snp_guest_policy, identity })
            }
            (Some(amd), false) => {
                Some(Protection::Sev { c_bit: self.c_bit()?, encrypted_state: amd.encrypted_state })
            }
            (None, false) if host.tdx => Some(Protection::Tdx { quotes }),
            (_, true) => self.absent(SNP, "no SEV-SNP (see the kernel's kvm_amd parameter sev_snp)"),
            (None, false) => self.absent(CONFIDENTIAL, "neither TDX nor SEV"),
        }
    }

    fn c_bit(&mut self) -> Option<CBit> {
        self.note(CONFIDENTIAL, CBit::new(self.host.c_bit.unwrap_or(0)).map_err(text))
    }

    fn absent<T>(&mut self, key: &str, what: &str) -> Option<T> {
        let what = format!("this host has {what}; unset it, or the guest's memory would not be protected");
        self.problem(key, what);
        None
    }

    /// The guest is measured as it starts, and its memory stays where it is.
    fn not_with_protected_memory(&mut self, raw: &RawHypervisor) {
        for (asked, key, what) in [
            (raw.machine_type != MachineType::Q35, "machine_type", "only the board q35 has protected memory"),
            (self.translated(raw), "accelerator", "TCG has no protected memory"),
            (raw.enable_iommu, "enable_iommu", "an IOMMU cannot reach protected memory"),
            (
                raw.reclaim_guest_freed_memory,
                "reclaim_guest_freed_memory",
                "protected memory is not given back",
            ),
            (
                raw.block_device_driver == "nvdimm",
                "block_device_driver",
                "memory that the host provides is not protected",
            ),
            (is_given(&raw.firmware_volume), "firmware_volume", "what can be changed cannot be measured"),
            (
                raw.sev_snp_guest && raw.pflashes.iter().any(|flash| is_given(flash)),
                "pflashes",
                "SEV-SNP starts from hypervisor.qemu.firmware",
            ),
        ] {
            if asked {
                let what = format!("{what}; unset this, or {CONFIDENTIAL}");
                self.problem(&format!("hypervisor.qemu.{key}"), what);
            }
        }
    }

    fn identity(&mut self, raw: &RawHypervisor) -> Option<SnpIdentity> {
        let (block, auth) = (&raw.snp_id_block, &raw.snp_id_auth);
        for (key, one, other) in [(ID_BLOCK, block, auth), (ID_AUTH, auth, block)] {
            if one.is_empty() && !other.is_empty() {
                self.problem(key, "missing; an identity is a block and what authenticates it".to_owned());
            }
        }
        if block.is_empty() || !self.sound(&[ID_BLOCK, ID_AUTH]) {
            return None;
        }
        self.note(ID_BLOCK, SnpIdentity::new(block, auth).map_err(text))
    }
}
