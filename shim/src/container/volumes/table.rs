//! The kernel's table of mounts.

use std::{ffi::OsString, fs, io, os::unix::ffi::OsStringExt, path::PathBuf};

/// Of the thread: the shim has mounts of its own.
pub(super) fn read() -> io::Result<String> {
    fs::read_to_string("/proc/thread-self/mountinfo")
}

/// The mounts in the order in which they were made.
pub(super) fn mounts(table: &str) -> impl DoubleEndedIterator<Item = Mount<'_>> {
    table.lines().filter_map(Mount::parse)
}

/// One line of the table.
pub(super) struct Mount<'a> {
    pub(super) device: &'a str,
    /// What of the device's file system is there.
    pub(super) root: PathBuf,
    pub(super) point: PathBuf,
    /// The kind of file system.
    pub(super) kind: &'a str,
    /// What whoever made it called its source.
    pub(super) source: &'a str,
}

impl Mount<'_> {
    fn parse(line: &str) -> Option<Mount<'_>> {
        // Of the fields before the dash some may be missing.
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(2);
        let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
        let mut fields = after.split(' ');
        let (kind, source) = (fields.next()?, fields.next()?);
        Some(Mount { device, root: unescaped(root), point: unescaped(point), kind, source })
    }
}

/// Blanks and the like are told by three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn paths_of_the_table_are_read_as_the_kernel_writes_them() {
        for (field, path) in [("/a\\040b\\134", "/a b\\"), ("/a\\9", "/a\\9"), ("/\\303\\251", "/é")] {
            assert_eq!(unescaped(field), Path::new(path));
        }
    }
}
