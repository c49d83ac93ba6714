//! Single values, and lists and maps of them, that every part of the configuration is made of.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::error::{ConvertError, Within};

pub(super) type Result<T> = std::result::Result<T, ConvertError>;

/// Zero stands for "not set".
pub(super) fn nonzero<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// Text that ends up in a system call, so it may not hold a NUL byte.
pub(super) fn text(field: &str, value: &str) -> Result<String> {
    if value.contains('\0') {
        return Err(ConvertError::new(field, value, "text without NUL bytes"));
    }
    Ok(value.to_owned())
}

/// As [`text`]; the empty string stands for "not set".
pub(super) fn optional_text(field: &str, value: &str) -> Result<Option<String>> {
    if value.is_empty() { Ok(None) } else { text(field, value).map(Some) }
}

/// A path that must be there.
pub(super) fn path(field: &str, value: &str) -> Result<PathBuf> {
    if value.is_empty() {
        return Err(ConvertError::new(field, value, "a path"));
    }
    text(field, value).map(PathBuf::from)
}

/// As [`path()`]; the empty string stands for "not set".
pub(super) fn optional_path(field: &str, value: &str) -> Result<Option<PathBuf>> {
    Ok(optional_text(field, value)?.map(PathBuf::from))
}

/// A path that must be there and start at the root.
pub(super) fn absolute_path(field: &str, value: &str) -> Result<PathBuf> {
    let path = path(field, value)?;
    if path.is_absolute() { Ok(path) } else { Err(ConvertError::new(field, value, "an absolute path")) }
}

/// Texts, each checked by [`text`]; the empty list stands for "not set".
pub(super) fn texts(field: &str, values: &[String]) -> Result<Option<Vec<String>>> {
    list(field, values, |value| text("", value))
}

/// Every item converted; the empty list stands for "not set".
pub(super) fn list<W, S>(
    field: &str,
    items: &[W],
    convert: impl Fn(&W) -> Result<S>,
) -> Result<Option<Vec<S>>> {
    let each = |(index, item)| convert(item).at(index).within(field);
    let converted = items.iter().enumerate().map(each).collect::<Result<Vec<S>>>()?;
    Ok((!converted.is_empty()).then_some(converted))
}

/// Keys and values, each checked by [`text`]; the empty map stands for "not set".
pub(super) fn map<H: BuildHasher>(
    field: &str,
    entries: &HashMap<String, String, H>,
) -> Result<Option<HashMap<String, String>>> {
    let pair = |(key, value): (&String, &String)| Ok((text(field, key)?, text(field, value)?));
    let entries = entries.iter().map(pair).collect::<Result<HashMap<_, _>>>()?;
    Ok((!entries.is_empty()).then_some(entries))
}

/// One of a fixed set of names.
pub(super) fn name<T: FromStr>(field: &str, value: &str, expected: &'static str) -> Result<T> {
    value.parse().map_err(|_| ConvertError::new(field, value, expected))
}

/// A number that must fit a narrower type.
pub(super) fn number<W, S>(field: &str, value: W, expected: &'static str) -> Result<S>
where
    W: Copy + ToString,
    S: TryFrom<W>,
{
    S::try_from(value).map_err(|_| ConvertError::new(field, value, expected))
}

/// As [`number`]; zero stands for "not set".
pub(super) fn optional_number<W, S>(field: &str, value: W, expected: &'static str) -> Result<Option<S>>
where
    W: Copy + ToString + Default + PartialEq,
    S: TryFrom<W>,
{
    nonzero(value).map(|value| number(field, value, expected)).transpose()
}

/// A path as it travels. Paths of a configuration come from JSON, hence are UTF-8.
pub(super) fn path_to_wire(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// As [`path_to_wire`]; "not set" travels as the empty string.
pub(super) fn optional_path_to_wire(path: Option<&PathBuf>) -> String {
    path.map(|path| path_to_wire(path)).unwrap_or_default()
}

/// Every item converted; "not set" travels as the empty list.
pub(super) fn list_to_wire<S, W>(items: Option<&Vec<S>>, convert: impl Fn(&S) -> W) -> Vec<W> {
    items.into_iter().flatten().map(convert).collect()
}
