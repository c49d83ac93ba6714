//! Does the host have the huge pages that a guest's memory needs? Asked before QEMU is started, which would say no
//! more than that it could not allocate.

use std::fs;

use crate::error::BootError;
use crate::spec::{Backing, Memory};

/// KiB of a huge page as the host has them by default, which guests get; 0 where it has none.
#[must_use]
pub fn page_kib() -> u64 {
    number(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "Hugepagesize:")
}

/// # Errors
/// [`BootError::HugePages`] when fewer are free than the guest needs.
pub(crate) fn check(memory: &Memory, backing: &Backing) -> Result<(), BootError> {
    if *backing != Backing::HugePages {
        return Ok(());
    }
    let table = fs::read_to_string("/proc/meminfo")
        .map_err(|source| BootError::Io { doing: "read /proc/meminfo".to_owned(), source })?;
    enough(memory.bytes(), &table)
}

fn enough(bytes: u64, table: &str) -> Result<(), BootError> {
    // A kernel without huge pages does not speak of them.
    let (free, page_kib) = (number(table, "HugePages_Free:"), number(table, "Hugepagesize:"));
    let needed = bytes.div_ceil(page_kib.max(1) << 10);
    if page_kib > 0 && free >= needed {
        return Ok(());
    }
    Err(BootError::HugePages { mib: bytes >> 20, needed, page_kib, free })
}

fn number(table: &str, name: &str) -> u64 {
    let line = table.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "MemTotal: 1 kB\nHugePages_Total: 8\nHugePages_Free:        4\nHugepagesize:       2048 kB\n";

    #[test]
    fn what_is_free_is_counted_in_pages() {
        assert!(enough(8 << 20, TABLE).is_ok());
        let text = enough((8 << 20) + 1, TABLE).unwrap_err().to_string();
        assert!(text.contains("5 huge pages of 2048 KiB") && text.contains("4 free"), "{text}");
    }

    #[test]
    fn a_kernel_without_huge_pages_has_none() {
        assert!(enough(1, "MemTotal: 1 kB\n").is_err());
    }
}
