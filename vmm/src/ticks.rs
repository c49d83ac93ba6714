//! How fast the clock ticks that an emulated guest reads.
//!
//! QEMU gives a guest it emulates the host's own time stamp counter. A guest measures it by a timer of the board, and
//! mistakes it where the host does not run QEMU meanwhile; one whose board has no other timer cannot measure it. So it is
//! told (docs/decisions/0015).

use std::time::Duration;
#[cfg(target_arch = "x86_64")]
use std::time::Instant;

/// How long is measured for a guest that has nothing to compare with. An error of 100 ns in either reading makes its clock
/// wrong by 1 s in a day.
pub(crate) const WELL: Duration = Duration::from_millis(20);

/// The same for one that measures again when it has time, unless it would have to correct more than a hundredth.
pub(crate) const ROUGHLY: Duration = Duration::from_millis(1);

/// Longer ago, the host may have slept since, and its counter with it.
#[cfg(target_arch = "x86_64")]
const RECENT: Duration = Duration::from_secs(10);

/// Readings of which the one that was interrupted least counts.
#[cfg(target_arch = "x86_64")]
const READINGS: usize = 8;

/// The host's time stamp counter, looked at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counter {
    #[cfg(target_arch = "x86_64")]
    first: Option<(Instant, u64)>,
}

#[cfg(target_arch = "x86_64")]
impl Counter {
    pub(crate) fn look() -> Self {
        Self { first: reading() }
    }

    /// Ticks in a millisecond; not before `after` since the first look. `None` where the counter does not count.
    pub(crate) async fn per_ms(&self, after: Duration) -> Option<u64> {
        let recent = self.first.filter(|(at, _)| at.elapsed() < RECENT);
        let (began, first) = recent.or_else(reading)?;
        if let Some(left) = after.checked_sub(began.elapsed()) {
            tokio::time::sleep(left).await;
        }
        let (ended, last) = reading()?;
        rate(last.checked_sub(first)?, ended - began)
    }
}

/// Other processors' clocks need no telling.
#[cfg(not(target_arch = "x86_64"))]
impl Counter {
    pub(crate) fn look() -> Self {
        Self {}
    }

    pub(crate) async fn per_ms(&self, _after: Duration) -> Option<u64> {
        None
    }
}

/// The counter, and the time between whose two looks it was read.
#[cfg(target_arch = "x86_64")]
fn reading() -> Option<(Instant, u64)> {
    let read = || {
        let before = counter();
        let now = Instant::now();
        let took = counter().saturating_sub(before);
        (took, now, before + took / 2)
    };
    let readings = (0..READINGS).map(|_| read());
    readings.min_by_key(|(took, ..)| *took).map(|(_, now, ticks)| (now, ticks))
}

#[cfg(target_arch = "x86_64")]
fn counter() -> u64 {
    // SAFETY: every processor of 64 bits has the instruction, which reads a register and nothing else.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(target_arch = "x86_64")]
fn rate(ticks: u64, time: Duration) -> Option<u64> {
    let rate = u128::from(ticks) * 1_000_000 / time.as_nanos().max(1);
    u64::try_from(rate).ok().filter(|rate| *rate > 0)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_in_ticks_of_a_millisecond() {
        assert_eq!(rate(49_000_000, Duration::from_millis(20)), Some(2_450_000));
        assert_eq!(rate(0, Duration::from_millis(20)), None);
    }

    #[tokio::test]
    async fn a_look_of_long_ago_does_not_count() {
        let other = reading().map(|(at, _)| (at - RECENT, 1));
        let long_ago = Counter { first: other }.per_ms(WELL).await.unwrap();
        let now = Counter::look().per_ms(WELL).await.unwrap();
        assert!(long_ago < 2 * now, "{long_ago} and {now} ticks in a millisecond");
    }

    #[tokio::test]
    async fn two_measurements_agree_to_a_thousandth() {
        let (one, other) = (Counter::look(), Counter::look());
        let (one, other) = (one.per_ms(WELL).await.unwrap(), other.per_ms(WELL).await.unwrap());
        assert!(one.abs_diff(other) * 1000 < one, "{one} and {other} ticks in a millisecond");
    }
}
