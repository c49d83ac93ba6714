//! What keeps the guest's memory from the host.

use super::Line;
use crate::device::{Object, Quotes};
use crate::spec::{CBit, Protection, SnpIdentity};

/// The object's id. Nothing else of a machine is called so.
pub(super) const ID: &str = "protection0";

/// What an address loses to encryption inside a guest, as QEMU itself answers to `query-sev-capabilities`. The
/// processor tells what the host loses, which is more.
const LOST_BITS: u8 = 1;

/// Policies of SEV (AMD SEV API, guest policy): no debugging, and registers encrypted too.
const NO_DEBUG: u32 = 1;
const ENCRYPTED_STATE: u32 = 1 << 2;

pub(super) fn object(line: &mut Line, protection: &Protection) {
    line.object(&match protection {
        Protection::Tdx { quotes } => {
            Object::TdxGuest { id: ID, quote_generation_socket: quotes.map(Quotes::at) }
        }
        Protection::Sev { c_bit, encrypted_state } => Object::SevGuest {
            id: ID,
            cbitpos: c_bit.position(),
            reduced_phys_bits: LOST_BITS,
            policy: if *encrypted_state { NO_DEBUG | ENCRYPTED_STATE } else { NO_DEBUG },
        },
        Protection::Snp { c_bit, policy, identity } => snp(*c_bit, *policy, identity.as_ref()),
    });
}

fn snp(c_bit: CBit, policy: u64, identity: Option<&SnpIdentity>) -> Object {
    Object::SevSnpGuest {
        id: ID,
        cbitpos: c_bit.position(),
        reduced_phys_bits: LOST_BITS,
        policy,
        kernel_hashes: true,
        id_block: identity.map(|identity| identity.block().to_owned()),
        id_auth: identity.map(|identity| identity.auth().to_owned()),
    }
}
