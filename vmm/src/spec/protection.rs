//! Memory that the host cannot read.

use super::error::SpecError;

/// Bytes of an SEV-SNP identity block, and of what authenticates it (SEV-SNP firmware ABI, ID_BLOCK and ID_AUTH).
const ID_BLOCK: usize = 96;
const ID_AUTH: usize = 4096;

/// How the guest's memory is kept from the host. The firmware measures the guest, so it has to be one made for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// Intel TDX.
    Tdx {
        /// The port of this host's vsock where quotes are made.
        quotes: Option<u32>,
    },
    /// AMD SEV, with firmware in flash memory.
    Sev {
        /// Which bit of an address says that the memory is encrypted.
        c_bit: CBit,
        /// The processors' registers are kept from the host too.
        encrypted_state: bool,
    },
    /// AMD SEV-SNP, which keeps the host from replacing memory as well.
    Snp {
        /// Which bit of an address says that the memory is encrypted.
        c_bit: CBit,
        /// What the guest's owner allows the host (SEV-SNP firmware ABI, guest policy).
        policy: u64,
        /// Who the guest is.
        identity: Option<SnpIdentity>,
    },
}

/// The position of the bit in an address that says that the memory is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CBit(u8);

impl CBit {
    /// Takes a position that an address of 64 bits has beyond those of memory.
    pub fn new(position: u32) -> Result<CBit, SpecError> {
        match u8::try_from(position) {
            Ok(bit @ 32..=63) => Ok(CBit(bit)),
            _ => Err(SpecError::CBit(position)),
        }
    }

    /// The position.
    #[must_use]
    pub fn position(self) -> u8 {
        self.0
    }
}

/// A signed statement of who a guest is, in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpIdentity {
    block: String,
    auth: String,
}

impl SnpIdentity {
    /// Takes a block and its authentication if both have the size that the processor's firmware takes.
    pub fn new(block: &str, auth: &str) -> Result<SnpIdentity, SpecError> {
        for (what, text, bytes) in
            [("SEV-SNP identity block", block, ID_BLOCK), ("SEV-SNP identity authentication", auth, ID_AUTH)]
        {
            if base64_bytes(text) != Some(bytes) {
                return Err(SpecError::SnpIdentity { what, bytes });
            }
        }
        Ok(SnpIdentity { block: block.to_owned(), auth: auth.to_owned() })
    }

    /// The block.
    #[must_use]
    pub fn block(&self) -> &str {
        &self.block
    }

    /// What authenticates it.
    #[must_use]
    pub fn auth(&self) -> &str {
        &self.auth
    }
}

/// How many bytes a text in base64 stands for, if it is one.
fn base64_bytes(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    let digit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    (text.len().is_multiple_of(4) && padding <= 2 && digits.bytes().all(digit))
        .then(|| text.len() / 4 * 3 - padding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a27_an_identity_has_the_size_the_firmware_takes() {
        let (block, auth) = ("A".repeat(128), format!("{}==", "A".repeat(5462)));
        assert!(SnpIdentity::new(&block, &auth).is_ok());
        for (block, auth) in
            [("", auth.as_str()), (block.as_str(), ""), (&"A".repeat(127), &auth), (&"?".repeat(128), &auth)]
        {
            assert!(SnpIdentity::new(block, auth).is_err());
        }
    }

    #[test]
    fn a27_a_bit_is_beyond_the_addresses_of_memory() {
        assert_eq!(CBit::new(51).unwrap().position(), 51);
        for position in [0, 31, 64, 256 + 51] {
            assert!(CBit::new(position).is_err());
        }
    }
}
