//! A set of the host's CPUs.

use nix::sched::CpuSet;

/// CPUs, as far as the kernel lets a thread be bound to them: the first 1024.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cpus(CpuSet);

impl Cpus {
    /// Those of a list such as `0-3,7`; what cannot be read counts as none.
    pub(super) fn of_list(list: &str) -> Cpus {
        let mut cpus = Cpus::default();
        for range in list.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>()) else {
                continue;
            };
            for cpu in first..=last.min(CpuSet::count() - 1) {
                cpus.add(cpu);
            }
        }
        cpus
    }

    fn add(&mut self, cpu: usize) {
        // Beyond the last there is no place, and no CPU.
        let _ = self.0.set(cpu);
    }

    fn has(&self, cpu: usize) -> bool {
        self.0.is_set(cpu).unwrap_or(false)
    }

    /// In ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..CpuSet::count()).filter(|cpu| self.has(*cpu))
    }

    pub(super) fn len(&self) -> u64 {
        self.iter().fold(0, |sum, _| sum + 1)
    }

    pub(super) fn or(mut self, other: Cpus) -> Cpus {
        other.iter().for_each(|cpu| self.add(cpu));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_set_and_what_cannot_be_read_is_none() {
        for (list, cpus) in [
            ("", &[][..]),
            ("3", &[3]),
            ("0-3,7", &[0, 1, 2, 3, 7]),
            (" 1 - 2 ,2", &[1, 2]),
            ("3-1", &[]),
            ("all", &[]),
            ("1023-4294967295", &[1023]),
            ("4294967295", &[]),
        ] {
            assert_eq!(Cpus::of_list(list).iter().collect::<Vec<_>>(), cpus, "{list:?}");
        }
    }

    #[test]
    fn sets_that_overlap_have_what_either_has() {
        let both = Cpus::of_list("0-1").or(Cpus::of_list("1,4"));
        assert_eq!((both, both.len()), (Cpus::of_list("0-1,4"), 3));
    }
}
