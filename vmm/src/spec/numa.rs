//! Memory that is near to the processors that use it.

use std::ops::Range;

use super::error::SpecError;
use super::value::{Memory, Vcpus};

/// Most nodes of a guest, and of a host.
const MOST: u32 = 128;

/// NUMA nodes of a guest, each backed by nodes of the host. Processors and memory are divided evenly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numa {
    hosts: Vec<Vec<u32>>,
    distances: Option<Vec<Vec<u8>>>,
}

/// How far a node is from itself (ACPI, System Locality Information Table).
const LOCAL: u8 = 10;

/// One node of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaNode {
    /// The nodes of the host that its memory comes from.
    pub host: Vec<u32>,
    /// Its processors; none where there are more nodes than processors.
    pub cpus: Range<u32>,
    /// Its memory in MiB.
    pub mib: u64,
}

impl Numa {
    /// One node of the guest for each of `hosts`, which are nodes of the host.
    pub fn new(hosts: Vec<Vec<u32>>) -> Result<Numa, SpecError> {
        let few = (1..=MOST as usize).contains(&hosts.len());
        let known = |nodes: &Vec<u32>| !nodes.is_empty() && nodes.iter().all(|node| *node < MOST);
        if few && hosts.iter().all(known) {
            return Ok(Numa { hosts, distances: None });
        }
        Err(SpecError::Numa(hosts))
    }

    /// The same with how far each node is from each, as ACPI counts it; without, each is equally far from all others.
    pub fn with_distances(self, distances: Vec<Vec<u8>>) -> Result<Numa, SpecError> {
        let count = self.hosts.len();
        let sound = |number: usize, row: &Vec<u8>| {
            row.len() == count && row[number] == LOCAL && row.iter().all(|far| (LOCAL..=254).contains(far))
        };
        if distances.len() == count && distances.iter().enumerate().all(|(number, row)| sound(number, row)) {
            return Ok(Numa { distances: Some(distances), ..self });
        }
        Err(SpecError::NumaDistances(distances))
    }

    /// From each node to each other, where that is known.
    pub fn distances(&self) -> impl Iterator<Item = (usize, usize, u8)> {
        let rows = self.distances.iter().flatten().enumerate();
        let all = rows.flat_map(|(from, row)| row.iter().enumerate().map(move |(to, far)| (from, to, *far)));
        all.filter(|(from, to, _)| from != to)
    }

    /// The nodes of a machine with these processors, all of which are there from the start, and this memory. What
    /// cannot be divided is the first nodes' more.
    #[must_use]
    pub fn nodes(&self, vcpus: Vcpus, memory: Memory) -> Vec<NumaNode> {
        let mut first = 0;
        let nodes = self
            .hosts
            .iter()
            .zip(shares(vcpus.boot().into(), self.count()))
            .zip(shares(memory.mib(), self.count()));
        nodes
            .map(|((host, cpus), mib)| {
                // A share of a number of 32 bits.
                let cpus = first..first + cpus as u32;
                first = cpus.end;
                NumaNode { host: host.clone(), cpus, mib }
            })
            .collect()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.hosts.len() as u64
    }
}

/// `whole` in `count` parts that differ by 1 at most.
fn shares(whole: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |number| whole / count + u64::from(number < whole % count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_and_memory_are_divided_evenly_and_wholly() {
        let numa = Numa::new(vec![vec![0], vec![1, 2], vec![3]]).unwrap();
        let nodes = numa.nodes(Vcpus::new(4, 4).unwrap(), Memory::new(1000, 0, 1000).unwrap());
        let parts: Vec<_> = nodes.iter().map(|node| (node.cpus.clone(), node.mib)).collect();
        assert_eq!(parts, [(0..2, 334), (2..3, 333), (3..4, 333)]);
        assert_eq!(nodes[1].host, [1, 2]);
        let few = numa.nodes(Vcpus::new(1, 1).unwrap(), Memory::new(3, 0, 3).unwrap());
        assert!(few[2].cpus.is_empty());
    }

    #[test]
    fn distances_are_between_all_nodes_and_least_to_oneself() {
        let numa = || Numa::new(vec![vec![0], vec![1]]).unwrap();
        let near_and_far = numa().with_distances(vec![vec![10, 21], vec![31, 10]]).unwrap();
        assert_eq!(near_and_far.distances().collect::<Vec<_>>(), [(0, 1, 21), (1, 0, 31)]);
        assert_eq!(numa().distances().count(), 0);
        for wrong in
            [vec![], vec![vec![10, 21]], vec![vec![10, 9], vec![21, 10]], vec![vec![20, 20], vec![20, 10]]]
        {
            assert!(numa().with_distances(wrong).is_err());
        }
    }

    #[test]
    fn nodes_that_no_host_has_are_refused() {
        for hosts in [vec![], vec![vec![]], vec![vec![128]], vec![vec![0]; 129]] {
            assert!(Numa::new(hosts).is_err());
        }
    }
}
