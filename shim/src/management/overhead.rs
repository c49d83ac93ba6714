//! What a pod uses on the host beyond what its containers use in the guest.

use std::{sync::PoisonError, time::Instant};

use super::Management;

/// What had been used at some time.
#[derive(Clone, Copy)]
pub(super) struct Used {
    at: Instant,
    /// Seconds of processors, of all processes of the sandbox on the host.
    pub(super) host_cpu: f64,
    /// Bytes of theirs.
    pub(super) host_memory: f64,
    /// Seconds of processors, of all containers in the guest.
    pub(super) guest_cpu: f64,
    /// Bytes of theirs.
    pub(super) guest_memory: f64,
}

/// What is beyond.
#[derive(Debug, PartialEq)]
pub(super) struct Overhead {
    /// Percent of one processor since it was last asked for; nothing the first time.
    pub(super) cpu: Option<f64>,
    /// Bytes.
    pub(super) memory: f64,
}

impl Used {
    /// Nothing, by now.
    pub(super) fn now() -> Used {
        Used { at: Instant::now(), host_cpu: 0.0, host_memory: 0.0, guest_cpu: 0.0, guest_memory: 0.0 }
    }

    fn since(self, last: Option<Used>) -> Overhead {
        // Containers that have ended do not count any more, so what all have used may have become less.
        let cpu = last.and_then(|last| {
            let seconds = self.at.saturating_duration_since(last.at).as_secs_f64();
            let host = self.host_cpu - last.host_cpu;
            let guest = (self.guest_cpu - last.guest_cpu).max(0.0);
            (seconds > 0.0).then(|| ((host - guest) / seconds * 100.0).max(0.0))
        });
        Overhead { cpu, memory: (self.host_memory - self.guest_memory).max(0.0) }
    }
}

/// What is beyond now; remembers what was used.
pub(super) fn of(management: &Management, used: Used) -> Overhead {
    let mut last = management.used.lock().unwrap_or_else(PoisonError::into_inner);
    used.since(last.replace(used))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn c22_what_is_beyond_the_containers_is_overhead() {
        let first =
            Used { host_cpu: 10.0, host_memory: 500.0, guest_cpu: 4.0, guest_memory: 100.0, ..Used::now() };
        assert_eq!(first.since(None), Overhead { cpu: None, memory: 400.0 });
        let at = first.at + Duration::from_secs(10);
        let later = Used { at, host_cpu: 13.0, guest_cpu: 5.0, ..first };
        assert_eq!(later.since(Some(first)), Overhead { cpu: Some(20.0), memory: 400.0 });
        // A container has ended, and another has more than the host has counted yet.
        let later = Used { at, host_cpu: 11.0, guest_cpu: 1.0, guest_memory: 600.0, ..first };
        assert_eq!(later.since(Some(first)), Overhead { cpu: Some(10.0), memory: 0.0 });
    }
}
