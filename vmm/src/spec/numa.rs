//! Memory that is near to the processors that use it.

use std::ops::Range;

use super::error::SpecError;
use super::value::{Memory, Vcpus};

/// Most nodes of a guest, and of a host.
const MOST: u32 = 128;

/// NUMA nodes of a guest, each backed by nodes of the host. Processors and memory are divided evenly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numa(Vec<Vec<u32>>);

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
            return Ok(Numa(hosts));
        }
        Err(SpecError::Numa(hosts))
    }

    /// The nodes of a machine with these processors, all of which are there from the start, and this memory. What
    /// cannot be divided is the first nodes' more.
    #[must_use]
    pub fn nodes(&self, vcpus: Vcpus, memory: Memory) -> Vec<NumaNode> {
        let mut first = 0;
        let nodes = self
            .0
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

    pub(super) fn count(&self) -> u64 {
        self.0.len() as u64
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
    fn nodes_that_no_host_has_are_refused() {
        for hosts in [vec![], vec![vec![]], vec![vec![128]], vec![vec![0]; 129]] {
            assert!(Numa::new(hosts).is_err());
        }
    }
}
