//! What is wrong with a message from the wire, and where.

/// A wire message held a value the OCI configuration does not allow.
///
/// The value is shown escaped and shortened, so that the text is fit for a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} is not {expected}")]
pub struct ConvertError {
    field: String,
    value: String,
    expected: &'static str,
}

impl ConvertError {
    /// Longest value shown, in characters before escaping.
    const SHOWN: usize = 64;

    pub(super) fn new(field: &str, value: impl ToString, expected: &'static str) -> Self {
        let shown: String = value.to_string().chars().take(Self::SHOWN).collect();
        Self { field: field.to_owned(), value: format!("{shown:?}"), expected }
    }

    /// Path of the field as in the OCI configuration's wire form, for example `linux.devices[2].type`.
    pub fn field(&self) -> &str {
        &self.field
    }

    fn within(mut self, outer: &str) -> Self {
        let separator = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        self.field.insert_str(0, separator);
        self.field.insert_str(0, outer);
        self
    }
}

/// Puts the outer field's name before the inner one; costs nothing unless there is an error.
pub(super) trait Within {
    fn within(self, outer: &str) -> Self;
    fn at(self, index: usize) -> Self;
}

impl<T> Within for Result<T, ConvertError> {
    fn within(self, outer: &str) -> Self {
        self.map_err(|error| error.within(outer))
    }

    fn at(self, index: usize) -> Self {
        self.map_err(|error| error.within(&format!("[{index}]")))
    }
}
