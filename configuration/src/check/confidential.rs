//! Memory that is kept from the host.

use super::Checker;
use crate::hypervisor::{Confidential, Firmware};
use crate::raw::RawHypervisor;

const CONFIDENTIAL: &str = "hypervisor.qemu.confidential_guest";
const SNP: &str = "hypervisor.qemu.sev_snp_guest";
const ID_BLOCK: &str = "hypervisor.qemu.snp_id_block";
const ID_AUTH: &str = "hypervisor.qemu.snp_id_auth";

impl Checker<'_> {
    pub(super) fn confidential(&mut self, raw: &RawHypervisor, firmware: &Firmware) -> Option<Confidential> {
        if !raw.confidential_guest {
            if raw.sev_snp_guest {
                self.warning(SNP, format!("means nothing without {CONFIDENTIAL}"));
            }
            return None;
        }
        if *firmware == Firmware::BuiltIn {
            let what = "needs firmware that measures the guest, which QEMU's own does not; set hypervisor.qemu.firmware";
            self.problem(CONFIDENTIAL, what.to_owned());
        }
        let (block, auth) = (&raw.snp_id_block, &raw.snp_id_auth);
        for (key, one, other) in [(ID_BLOCK, block, auth), (ID_AUTH, auth, block)] {
            if one.is_empty() && !other.is_empty() {
                self.problem(key, "missing; an identity is a block and what authenticates it".to_owned());
            }
        }
        Some(Confidential {
            snp: raw.sev_snp_guest,
            snp_identity: (!block.is_empty()).then(|| (block.clone(), auth.clone())),
            snp_policy: raw.snp_guest_policy,
            tdx_quotes: Some(raw.tdx_quote_generation_service_socket_port).filter(|port| *port != 0),
        })
    }
}
