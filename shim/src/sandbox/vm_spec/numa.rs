//! NUMA nodes.

use std::{fs, path::Path};

use configuration::NumaMapping;
use vmm::spec::Numa;

use super::unusable;
use crate::error::{Error, Result};

/// Where the kernel shows the host's nodes.
pub(super) const HOST: &str = "/sys/devices/system/node";

/// The nodes of a guest, all of whose host nodes are there.
pub(super) fn of(mapping: Option<&NumaMapping>, host: &Path) -> Result<Option<Numa>> {
    let Some(mapping) = mapping else { return Ok(None) };
    let present = nodes(host);
    let hosts = match mapping {
        NumaMapping::Host => present.iter().map(|node| vec![*node]).collect(),
        NumaMapping::Nodes(hosts) => hosts.clone(),
    };
    if let Some(absent) = hosts.iter().flatten().find(|node| !present.contains(node)) {
        return Err(Error::InvalidArgument(format!(
            "hypervisor.qemu.numa_mapping: the host has no node {absent}, but {present:?}"
        )));
    }
    let distances = distances(host, &present, &hosts);
    let numa = Numa::new(hosts).map_err(unusable("numa_mapping"))?;
    // A host that does not know its distances has a guest that does not.
    let known = distances.and_then(|distances| numa.clone().with_distances(distances).ok());
    Ok(Some(known.unwrap_or(numa)))
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

fn nodes(host: &Path) -> Vec<u32> {
    let entries = fs::read_dir(host).into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix("node")?.parse().ok();
    let mut nodes: Vec<u32> = entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    nodes.sort_unstable();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_a_node_for_each_of_the_host_s_or_those_it_is_given() {
        let host = tempfile::tempdir().unwrap();
        for name in ["node10", "node2", "node0", "power", "nodes"] {
            fs::create_dir(host.path().join(name)).unwrap();
        }
        let of = |mapping| super::of(Some(&mapping), host.path());
        assert_eq!(of(NumaMapping::Host).unwrap(), Numa::new(vec![vec![0], vec![2], vec![10]]).ok());
        assert_eq!(of(NumaMapping::Nodes(vec![vec![2, 0]])).unwrap(), Numa::new(vec![vec![2, 0]]).ok());
        let error = of(NumaMapping::Nodes(vec![vec![0], vec![1]])).unwrap_err().to_string();
        assert!(error.contains("the host has no node 1, but [0, 2, 10]"), "{error}");
        assert_eq!(super::of(None, host.path()).unwrap(), None);
        for (name, table) in [("node0", "10 20 30"), ("node2", "21 10 40\n"), ("node10", "31 41 10")] {
            fs::write(host.path().join(name).join("distance"), table).unwrap();
        }
        let two = Numa::new(vec![vec![10], vec![0, 2]]).unwrap();
        let expected = two.with_distances(vec![vec![10, 31], vec![30, 10]]).unwrap();
        assert_eq!(of(NumaMapping::Nodes(vec![vec![10], vec![0, 2]])).unwrap(), Some(expected));
        // A kernel without NUMA has no nodes to divide among.
        assert!(super::of(Some(&NumaMapping::Host), Path::new("/nonexistent")).is_err());
    }
}
