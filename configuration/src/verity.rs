//! What blocks of an image are checked by.

use std::num::NonZeroU64;

/// Parameters of dm-verity, by SHA-256 and without a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verity {
    /// The hash that all the others are behind.
    pub root_hash: Vec<u8>,
    /// What goes into each hash first; may be empty.
    pub salt: Vec<u8>,
    /// Blocks of data.
    pub data_blocks: NonZeroU64,
    /// Bytes in each of them: a power of two from 512 to 65536.
    pub data_block_size: u32,
    /// Bytes in a block of hashes, likewise.
    pub hash_block_size: u32,
}

const FORM: &str = "root_hash=<64 hexadecimal digits>,salt=<hexadecimal>,data_blocks=<n>,data_block_size=<n>,hash_block_size=<n>";

impl Verity {
    /// The parameters in a text of that form, in any order.
    ///
    /// # Errors
    /// What is missing, wrong, unknown or there twice.
    pub(crate) fn parse(text: &str) -> Result<Verity, String> {
        let mut parts = Parts::read(text)?;
        let verity = Verity {
            root_hash: parts.take("root_hash", |value| hex(value).filter(|hash| hash.len() == 32))?,
            salt: parts.take("salt", |value| if value == "-" { Some(Vec::new()) } else { hex(value) })?,
            data_blocks: parts.take("data_blocks", |value| value.parse().ok())?,
            data_block_size: parts.take("data_block_size", block_size)?,
            hash_block_size: parts.take("hash_block_size", block_size)?,
        };
        match parts.0.first() {
            None => Ok(verity),
            Some((name, _)) => Err(format!("{name:?} is unknown or there twice; write {FORM}")),
        }
    }
}

/// Names and values that have not been made use of.
struct Parts<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Parts<'a> {
    fn read(text: &'a str) -> Result<Parts<'a>, String> {
        let part = |part: &'a str| {
            part.trim().split_once('=').ok_or_else(|| format!("{part:?} has no value; write {FORM}"))
        };
        text.split(',').map(part).collect::<Result<_, _>>().map(Parts)
    }

    fn take<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, String> {
        let at = self.0.iter().position(|(given, _)| *given == name);
        let (_, value) = self.0.swap_remove(at.ok_or_else(|| format!("{name} is missing; write {FORM}"))?);
        read(value).ok_or_else(|| format!("{name} is {value:?}; write {FORM}"))
    }
}

fn block_size(text: &str) -> Option<u32> {
    text.parse().ok().filter(|size: &u32| size.is_power_of_two() && (512..=65536).contains(size))
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<_>>>()?;
    let bytes = digits.chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(high << 4 | low).ok(),
        _ => None,
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

    #[test]
    fn parameters_are_read_in_any_order() {
        let rest = "data_blocks=10,data_block_size=4096,hash_block_size=512";
        let verity = Verity::parse(&format!("{rest},salt=0aff, root_hash={HASH}")).unwrap();
        assert_eq!((verity.root_hash[1], verity.root_hash[31]), (0x11, 0xff));
        assert_eq!((verity.salt, verity.data_blocks.get()), (vec![0x0a, 0xff], 10));
        assert_eq!((verity.data_block_size, verity.hash_block_size), (4096, 512));
        assert_eq!(Verity::parse(&format!("root_hash={HASH},salt=-,{rest}")).unwrap().salt, []);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let rest = "data_block_size=4096,hash_block_size=4096";
        for (text, expected) in [
            (String::new(), "has no value"),
            (format!("root_hash=00,salt=,data_blocks=1,{rest}"), "root_hash is \"00\""),
            (format!("root_hash={HASH},salt=x,data_blocks=1,{rest}"), "salt is \"x\""),
            (format!("root_hash={HASH},salt=012,data_blocks=1,{rest}"), "salt is \"012\""),
            (format!("root_hash={HASH},salt=,data_blocks=0,{rest}"), "data_blocks is \"0\""),
            (format!("root_hash={HASH},salt=,data_blocks=1,data_block_size=1000"), "data_block_size is"),
            (
                format!("root_hash={HASH},salt=,data_blocks=1,data_block_size=512"),
                "hash_block_size is missing",
            ),
            (
                format!("root_hash={HASH},salt=,data_blocks=1,{rest},salt="),
                "\"salt\" is unknown or there twice",
            ),
            (format!("root_hash={HASH},salt=,data_blocks=1,{rest},x=\""), "\"x\" is unknown"),
        ] {
            let error = Verity::parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
