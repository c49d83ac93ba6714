//! NUMA nodes.

use std::fs;
use std::path::Path;

use vmm::spec::Numa;

use super::{Checker, text};
use crate::raw::RawHypervisor;

const MAPPING: &str = "hypervisor.qemu.numa_mapping";
/// Most nodes that QEMU can name.
const MOST: u32 = 128;
/// Most nodes of a guest. Programs that share its memory map it in pieces, of which each node is one and each module
/// that comes later: older virtiofsd take 32.
const MOST_OF_GUEST: usize = 8;

impl Checker<'_> {
    pub(super) fn numa(&mut self, raw: &RawHypervisor) -> Option<Numa> {
        if !raw.enable_numa {
            if !raw.numa_mapping.is_empty() {
                self.warning(MAPPING, "means nothing without enable_numa".to_owned());
            }
            return None;
        }
        let host = &self.host.nodes;
        let numa = mapping(&raw.numa_mapping, &present(host)).and_then(|hosts| of(hosts, host));
        self.note(MAPPING, numa)
    }
}

/// The host's nodes behind each of the guest's; no mapping is one behind each.
fn mapping(lists: &[String], present: &[u32]) -> Result<Vec<Vec<u32>>, String> {
    if lists.is_empty() {
        return Ok(present.iter().map(|node| vec![*node]).collect());
    }
    let hosts: Vec<_> = lists.iter().map(|list| nodes(list)).collect::<Result<_, String>>()?;
    match hosts.iter().flatten().find(|node| !present.contains(node)) {
        Some(absent) => Err(format!("the host has no node {absent}, but {present:?}")),
        None => Ok(hosts),
    }
}

fn of(hosts: Vec<Vec<u32>>, host: &Path) -> Result<Numa, String> {
    if hosts.len() > MOST_OF_GUEST {
        return Err(format!(
            "{} nodes are more than the {MOST_OF_GUEST} a guest can have; group the host's",
            hosts.len()
        ));
    }
    let distances = distances(host, &present(host), &hosts);
    let numa = Numa::new(hosts).map_err(text)?;
    // A host that does not know its distances has a guest that does not.
    let known = distances.and_then(|distances| numa.clone().with_distances(distances).ok());
    Ok(known.unwrap_or(numa))
}

/// Numbers and ranges, separated by commas.
fn nodes(list: &str) -> Result<Vec<u32>, String> {
    let number = |text: &str| text.trim().parse().ok().filter(|node| *node < MOST);
    let part = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(number(first)?..=number(last)?).filter(|range| !range.is_empty()),
        None => number(part).map(|node| node..=node),
    };
    let parts: Option<Vec<_>> = list.split(',').map(part).collect();
    let nodes = parts
        .ok_or_else(|| format!("{list:?} is no list of nodes below {MOST}, such as \"0\" or \"1,4-5\""))?;
    Ok(nodes.into_iter().flatten().collect())
}

/// How far the guest's nodes are from each other: as far as the first of the host's nodes behind each.
fn distances(host: &Path, present: &[u32], hosts: &[Vec<u32>]) -> Option<Vec<Vec<u8>>> {
    let first: Vec<u32> = hosts.iter().map(|nodes| nodes.first().copied()).collect::<Option<_>>()?;
    let row = |from: &u32| {
        let table = fs::read_to_string(host.join(format!("node{from}/distance"))).ok()?;
        let table: Vec<u8> = table.split_whitespace().map(|far| far.parse().ok()).collect::<Option<_>>()?;
        let far = |to: &u32| table.get(present.iter().position(|node| node == to)?).copied();
        first.iter().map(far).collect()
    };
    first.iter().map(row).collect()
}

/// The numbers of the host's.
fn present(host: &Path) -> Vec<u32> {
    let entries = fs::read_dir(host).into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix("node")?.parse().ok();
    let mut nodes: Vec<u32> = entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    nodes.sort_unstable();
    nodes
}
