//! NUMA nodes.

use super::Checker;
use crate::hypervisor::NumaMapping;
use crate::raw::RawHypervisor;

const MAPPING: &str = "hypervisor.qemu.numa_mapping";
/// Most nodes that QEMU can name.
const MOST: u32 = 128;

impl Checker<'_> {
    pub(super) fn numa(&mut self, raw: &RawHypervisor) -> Option<NumaMapping> {
        if !raw.enable_numa {
            if !raw.numa_mapping.is_empty() {
                self.warning(MAPPING, "means nothing without enable_numa".to_owned());
            }
            return None;
        }
        if raw.numa_mapping.is_empty() {
            return Some(NumaMapping::Host);
        }
        let nodes: Result<Vec<_>, String> = raw.numa_mapping.iter().map(|list| nodes(list)).collect();
        self.note(MAPPING, nodes).map(NumaMapping::Nodes)
    }
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
