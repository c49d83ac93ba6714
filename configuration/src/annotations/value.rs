//! From an annotation's text to the value of a key.

use toml::Value;

use crate::keys::Kind;

/// Some of QEMU's options of a machine, `firmware` for one, have it read a file.
const MACHINE_OPTIONS: &str = "machine_accelerators";

/// Reads `text` as a value of `kind`.
///
/// # Errors
/// What was expected.
pub(super) fn parse(key: &str, kind: Kind, text: &str) -> Result<Value, String> {
    // What cannot be read stays a string, which the kind then refuses in its own words.
    let value = match kind {
        Kind::Flag => flag(text).map(Value::from),
        Kind::Integer { .. } => text.parse::<i64>().ok().map(Value::from),
        Kind::Number => text.parse::<f64>().ok().map(Value::from),
        Kind::Texts => Some(list(key, text)),
        Kind::Text | Kind::Choice(_) | Kind::Tables => None,
    };
    let value = value.unwrap_or_else(|| Value::from(text));
    kind.check(&value)?;
    if key == MACHINE_OPTIONS && text.contains('/') {
        return Err(
            "names a file of the host, which only the configuration file may do; leave that option out"
                .to_owned(),
        );
    }
    Ok(value)
}

/// The words Kata's Go runtime takes.
fn flag(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A list in one string: kernel modules have parameters, so semicolons part them.
fn list(key: &str, text: &str) -> Value {
    let separator = if key == "kernel_modules" { ';' } else { ' ' };
    let items = text.split(separator).map(str::trim).filter(|item| !item.is_empty());
    items.map(Value::from).collect::<Vec<_>>().into()
}
