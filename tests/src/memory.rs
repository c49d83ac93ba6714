//! What processes take of the host's memory.

use std::fs;

use crate::{Context, Result};

/// Proportional set size in KiB: a page shared by n processes counts 1/n.
pub fn pss_kib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("Pss")?;
    Ok(number.parse()?)
}

/// That of a shim and all it has started, in KiB.
pub fn family_pss_kib(shim: u32) -> f64 {
    family(shim).into_iter().filter_map(|pid| pss_kib(pid).ok()).sum()
}

/// A process and all that descend from it.
fn family(first: u32) -> Vec<u32> {
    let mut all = vec![first];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        let children = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let children = children.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        all.extend(
            children.flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<u32>>()),
        );
        next += 1;
    }
    all
}
