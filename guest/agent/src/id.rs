//! Identifiers that come from the host and end up in paths.

use std::{fmt, path::Path};

use crate::error::Error;

/// Longest identifier accepted, in bytes.
const MAX_LEN: usize = 128;

/// The name of a container or of a process in it: `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most 128 bytes, so it
/// is one harmless path component.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(String);

impl Id {
    /// Checks `text`, which names a `kind` of thing in the error.
    pub(crate) fn parse(kind: &str, text: &str) -> Result<Self, Error> {
        let head = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if head && rest && text.len() <= MAX_LEN {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(format!(
            "{kind} id {text:?}: wants 1 to {MAX_LEN} of [A-Za-z0-9_.-], the first a letter or digit"
        )))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<Path> for Id {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "-a", "_a", ".a", "a b", "a\0", "ä", &"a".repeat(129)] {
            assert!(Id::parse("container", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_as_containerd_makes_them_are_accepted() {
        for good in ["a", "0", "busybox-1_x.y", &"f".repeat(64), &"a".repeat(128)] {
            assert_eq!(Id::parse("container", good).unwrap().as_str(), good);
        }
    }
}
