//! What blocks of an image are checked by: parameters of dm-verity.

use vmm::spec::Verity;

const FORM: &str = "root_hash=<64 hexadecimal digits>,salt=<hexadecimal>,data_blocks=<n>,data_block_size=<n>,hash_block_size=<n>";

/// The parameters in a text of that form, in any order; what is missing, wrong, unknown or there twice.
pub(crate) fn parse(text: &str) -> Result<Verity, String> {
    let mut parts = Parts::read(text)?;
    let verity = Verity {
        root_hash: parts.take("root_hash", |value| hex(value).filter(|hash| hash.len() == 32))?,
        salt: parts.take("salt", |value| if value == "-" { Some(Vec::new()) } else { hex(value) })?,
        data_blocks: parts.take("data_blocks", |value| value.parse().ok().filter(|blocks| *blocks > 0))?,
        data_block_size: parts.take("data_block_size", block_size)?,
        hash_block_size: parts.take("hash_block_size", block_size)?,
    };
    match parts.0.first() {
        None => Ok(verity),
        Some((name, _)) => Err(format!("{name:?} is unknown or there twice; write {FORM}")),
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
        let verity = parse(&format!("{rest},salt=0aff, root_hash={HASH}")).unwrap();
        assert_eq!((verity.root_hash[1], verity.root_hash[31]), (0x11, 0xff));
        assert_eq!((verity.salt, verity.data_blocks), (vec![0x0a, 0xff], 10));
        assert_eq!((verity.data_block_size, verity.hash_block_size), (4096, 512));
        assert!(parse(&format!("root_hash={HASH},salt=-,{rest}")).unwrap().salt.is_empty());
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
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
