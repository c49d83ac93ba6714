//! SGX: memory of enclaves.

use super::error::SpecError;

const PAGE: u64 = 4096;

/// Memory for SGX enclaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SgxEpc(u64);

impl SgxEpc {
    /// Reads an amount as Kubernetes writes it: bytes, or a multiple of 1024 and so on with `Ki`, `Mi`, `Gi`, `Ti`.
    pub fn parse(text: &str) -> Result<SgxEpc, SpecError> {
        let refuse = || SpecError::SgxEpc(text.to_owned());
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: u64 = match &text[digits.len()..] {
            "" => 1,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(refuse()),
        };
        let number: u64 = digits.parse().map_err(|_| refuse())?;
        match number.checked_mul(unit) {
            Some(bytes) if bytes > 0 && bytes % PAGE == 0 => Ok(SgxEpc(bytes)),
            _ => Err(refuse()),
        }
    }

    /// The amount.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a28_an_amount_is_of_whole_pages_in_binary_units() {
        for (text, bytes) in [("8192", 8192), ("64Mi", 64 << 20), ("1Gi", 1 << 30), ("4Ki", 4096)] {
            assert_eq!(SgxEpc::parse(text).unwrap().bytes(), bytes);
        }
        for text in
            ["", "0", "1", "1Ki", "64M", "64k", "-1Mi", "1.5Gi", "Mi", "64 Mi", "18446744073709551615Ti"]
        {
            assert!(SgxEpc::parse(text).is_err(), "{text:?}");
        }
    }
}
