//! Values the guest chose.

use std::fmt;

/// A value from the guest, not to be used as a name, path or id on the host.
///
/// Look up what it claims to be with [`known_as`](Self::known_as) and go on with the host's own value;
/// printing it is safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untrusted<T>(T);

impl<T> Untrusted<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }

    /// The bare value, for passing on as data only.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl Untrusted<String> {
    /// The one of the host's own names that this is, if any.
    pub fn known_as<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        names.into_iter().find(|name| *name == self.0)
    }
}

/// Escaped, and cut after 64 characters.
impl fmt::Display for Untrusted<String> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.0.chars().take(64).collect();
        write!(f, "{shown:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_own_names_come_out() {
        let claimed = Untrusted::new("web".to_owned());
        assert_eq!(claimed.known_as(["db", "web"]), Some("web"));
        assert_eq!(claimed.known_as(["db"]), None);
        assert_eq!(Untrusted::new("../\n".to_owned()).to_string(), r#""../\n""#);
    }
}
