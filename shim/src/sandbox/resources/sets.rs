//! Whether sets of the host's CPUs and memory nodes are any, as the host's kernel has it, which judges them for runc.
//!
//! Inside the guest they mean nothing, where there are other CPUs: what the host has may be named there, too.

use std::fs;

use oci_spec::runtime::LinuxResources;

use crate::error::{Error, Result};

/// What the kernel has numbers for, whether that is there by now or not.
const CPUS: &str = "/sys/devices/system/cpu/possible";
const NODES: &str = "/sys/devices/system/node/possible";

/// Refuses sets that runc could not have the kernel take.
///
/// # Errors
/// The set, and what is wrong in it.
pub(crate) fn check(resources: &LinuxResources) -> Result<()> {
    let Some(cpu) = resources.cpu() else { return Ok(()) };
    let sets = [("cpus", cpu.cpus(), CPUS), ("mems", cpu.mems(), NODES)];
    for (field, set, possible) in sets {
        // An empty one is none.
        let Some(set) = set.as_deref().filter(|set| !set.is_empty()) else { continue };
        let last = fs::read_to_string(possible).ok().and_then(|list| last_of(&list)).unwrap_or(u32::MAX);
        check_set(set, last).map_err(|why| {
            // The code of runc's, which has it from the kernel.
            Error::Failed(format!(
                "linux.resources.cpu.{field}: {set:?}: {why}; a set is a list such as 0-3,7"
            ))
        })?;
    }
    Ok(())
}

/// The last number of a list of the kernel's own: `0-3,8-11`.
fn last_of(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

/// The kernel's syntax of bitmap lists: regions between commas or white space. `last` is the greatest number there is.
fn check_set(set: &str, last: u32) -> std::result::Result<(), String> {
    let between = |c: char| c == ',' || c.is_ascii_whitespace();
    set.split(between).filter(|region| !region.is_empty()).try_for_each(|region| check_region(region, last))
}

/// A number, a range, or so many of each group of a range: `0-15:2/8`. `N` is the last number, `all` all of them.
fn check_region(region: &str, last: u32) -> std::result::Result<(), String> {
    let (range, groups) =
        region.split_once(':').map_or((region, None), |(range, groups)| (range, Some(groups)));
    let number = |text: &str| match text {
        "N" => Ok(last),
        _ if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("{region:?} is neither a number nor a range"))
        }
        _ => text
            .parse()
            .map_err(|_| format!("{region:?} is beyond {last}, the last there can be on this host")),
    };
    let (first, end) = match (range, range.split_once('-')) {
        ("all", _) => (0, last),
        (_, Some((first, end))) => (number(first)?, number(end)?),
        (_, None) if groups.is_some() => return Err(format!("{region:?} has groups of no range")),
        (_, None) => number(range).map(|number| (number, number))?,
    };
    if first > end {
        return Err(format!("{region:?} ends before it begins"));
    }
    if end > last {
        return Err(format!("{region:?} is beyond {last}, the last there can be on this host"));
    }
    let Some(groups) = groups else { return Ok(()) };
    let sizes = groups.split_once('/').map(|(used, size)| (used.parse::<u32>(), size.parse::<u32>()));
    match sizes {
        Some((Ok(used), Ok(size))) if (1..=size).contains(&used) => Ok(()),
        _ => Err(format!("{region:?} has no groups such as 2/8 behind its colon")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_list_of_what_there_can_be_ends_with_the_last() {
        for (list, last) in [("0\n", Some(0)), ("0-1\n", Some(1)), ("0-3,8-11", Some(11)), ("\n", None)] {
            assert_eq!(last_of(list), last, "{list:?}");
        }
    }

    /// Tried on a host of two CPUs: what runc's update says of them.
    #[test]
    fn a_set_is_what_the_kernel_takes() {
        for set in ["0-1", "0,,1", "0 1", " 0-1 ", "0-1:1/2", "0,", ",0", "all", "N", "0-N", "01", "all:1/2"]
        {
            assert_eq!(check_set(set, 1), Ok(()), "{set:?}");
        }
        for (set, word) in [
            ("abc", "neither"),
            ("-1", "neither"),
            ("0-", "neither"),
            ("0x1", "neither"),
            ("0 - 1", "neither"),
            ("+1", "neither"),
            ("1-0", "before"),
            ("5", "last"),
            ("0-999", "last"),
            ("70000", "last"),
            ("4294967296", "last"),
            ("0-1:2/1", "groups"),
            ("0-1:1", "groups"),
            ("0-1:1/0", "groups"),
            ("0-1:0/1", "groups"),
            ("0-1:1/2x", "groups"),
            ("0:1/2", "groups"),
            ("0-all", "neither"),
            ("N-0", "before"),
        ] {
            let why = check_set(set, 1).expect_err(set);
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn a_refusal_names_the_field_and_the_set() {
        let check = |cpu: Value| check(&serde_json::from_value(json!({"cpu": cpu})).unwrap());
        check(json!({"cpus": "", "mems": ""})).unwrap();
        check(json!({"cpus": "0", "mems": "0"})).unwrap();
        for (cpu, words) in [
            (json!({"cpus": "abc", "mems": "0"}), r#"linux.resources.cpu.cpus: "abc""#),
            (json!({"cpus": "0", "mems": "0-"}), r#"linux.resources.cpu.mems: "0-""#),
        ] {
            let error = check(cpu).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("such as 0-3,7"), "{error}");
        }
    }
}
