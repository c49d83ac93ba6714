//! A guest that has mistaken its timer before it ran.
//!
//! On the board with ACPI and without PCI nothing wakes a processor but the timer of its own local APIC. Linux finds out
//! once how fast that is: it has it count down and looks at it again a tenth of a second later
//! (`calibrate_APIC_clock`). Where the host did not let QEMU run meanwhile, both looks are at nearly the same moment. The
//! timer seems to stand still, and the kernel does without it, which here is without any: it waits for ever. Or it seems
//! to be so slow that the kernel has it end at once, again and again, and does nothing but be told so. KVM has other
//! timers, and the other boards have some to compare with.

use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use slog::{Logger, debug, warn};
use tokio::task::JoinHandle;

use super::qmp::{HumanMonitorCommand, Qmp, SetAction, SystemReset};
use crate::child::Child;
use crate::error::QmpError;

/// How often the timer is looked at: QEMU has no event for it.
const PAUSE: Duration = Duration::from_millis(100);
/// What QEMU may compute for a guest that measures its timer. Every processor does so for a tenth of a second.
const MEASURES: Duration = Duration::from_secs(1);
/// Linux's own ticks are a thousandth of a second apart, or more (`CONFIG_HZ`).
const SHORTEST_TICK: Duration = Duration::from_micros(500);
/// How often a guest is started again.
const ATTEMPTS: u32 = 3;

/// Has the guest start again when it has mistaken its timer. Dropping it ends that.
#[derive(Debug)]
pub(super) struct TimerWatch(JoinHandle<()>);

impl TimerWatch {
    pub(super) fn start(qmp: Qmp, qemu: Arc<Child>, log: Logger) -> TimerWatch {
        let computed = move || computed(qemu.process().pid).filter(|_| !qemu.is_gone());
        TimerWatch(tokio::spawn(async move {
            if let Err(error) = watch(&qmp, computed, &log).await {
                debug!(log, "the guest's timer is not looked at any more"; "why" => error.to_string());
            }
        }))
    }
}

impl Drop for TimerWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the guest's first processor does with its timer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// Nothing yet.
    Unset,
    /// It counts, and nobody is to be told.
    Measured,
    /// It wakes the processor more often than any kernel means to.
    Rushes,
    /// It wakes the processor.
    Runs,
}

async fn watch(qmp: &Qmp, computed: impl Fn() -> Option<Duration>, log: &Logger) -> Result<(), QmpError> {
    for attempt in 1..=ATTEMPTS {
        if runs(qmp, &computed).await? {
            return Ok(());
        }
        warn!(log, "the guest has mistaken its timer, as the host was too busy to run it for a while: it starts again";
            "attempt" => attempt);
        restart(qmp).await?;
    }
    Ok(())
}

/// Waits until the timer runs, which is true, or is mistaken.
async fn runs(qmp: &Qmp, computed: impl Fn() -> Option<Duration>) -> Result<bool, QmpError> {
    let mut since = None;
    loop {
        tokio::time::sleep(PAUSE).await;
        match timer(qmp).await? {
            Timer::Runs => return Ok(true),
            Timer::Rushes => return Ok(false),
            Timer::Unset => since = None,
            Timer::Measured => {
                // A QEMU that is gone is somebody else's to tell of.
                let Some(now) = computed() else { return Ok(true) };
                if now.saturating_sub(*since.get_or_insert(now)) > MEASURES {
                    return Ok(false);
                }
            }
        }
    }
}

pub(super) async fn timer(qmp: &Qmp) -> Result<Timer, QmpError> {
    let text = qmp.execute(HumanMonitorCommand { command_line: "info lapic 0".to_owned() }).await?;
    Ok(timer_in(&text))
}

/// By the registers of QEMU's description (Intel's manual, volume 3, "APIC Timer"). What it does not describe is taken
/// for a timer that runs.
fn timer_in(text: &str) -> Timer {
    const MASKED: u32 = 1 << 16;
    const PERIODIC: u32 = 1 << 17;
    let register =
        word(text, "LVTT\t").and_then(|word| u32::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let Some(register) = register else { return Timer::Runs };
    match (register & PERIODIC != 0, register & MASKED != 0) {
        (true, true) => Timer::Measured,
        (false, true) => Timer::Unset,
        (true, false) if tick(text).is_some_and(|tick| tick < SHORTEST_TICK) => Timer::Rushes,
        (_, false) => Timer::Runs,
    }
}

/// How long a timer counts that starts again by itself: QEMU's takes a nanosecond, divided, for a count.
fn tick(text: &str) -> Option<Duration> {
    let divisor: u64 = word(text, "(divide by")?.trim_end_matches(')').parse().ok()?;
    let count: u64 = word(text, "initial_count =")?.parse().ok()?;
    Some(Duration::from_nanos(count.saturating_mul(divisor)))
}

/// What stands after a name.
fn word<'text>(text: &'text str, name: &str) -> Option<&'text str> {
    text.split_once(name)?.1.split_whitespace().next()
}

/// QEMU ends at a reset of the guest's own, and takes no difference.
async fn restart(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.execute(SetAction { reboot: "reset" }).await?;
    qmp.execute(SystemReset {}).await?;
    qmp.execute(SetAction { reboot: "shutdown" }).await.map(drop)
}

/// The processors' time that a process has used.
fn computed(pid: u32) -> Option<Duration> {
    let clock: ClockId = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid).ok()?)).ok()?;
    clock.now().ok().map(Duration::from)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use slog::{Discard, o};

    use super::*;
    use crate::qemu::qmp::tests::{Peer, connected};

    /// As QEMU 7.2 and 10.0 print it.
    fn lapic(register: &str, count: u32) -> String {
        format!(
            "dumping local APIC state for CPU 0 \r\n\r\nLVT0\t 0x00010700 active-hi edge  masked  ExtINT (vec 0)\r\n\
             LVTTHMR\t 0x00010000 active-hi edge  masked                      Fixed  (vec 0)\r\n\
             LVTT\t {register} active-hi edge  masked         periodic     Fixed  (vec 236)\r\n\
             Timer\t DCR=0x3 (divide by 16) initial_count = {count} current_count = 4915103\r\n"
        )
    }

    async fn answer(peer: &mut Peer, register: &str, count: u32) {
        peer.answer(&serde_json::json!(lapic(register, count)).to_string()).await;
    }

    async fn asked(peer: &mut Peer) -> String {
        let heard = peer.hear().await;
        peer.say(&format!(r#"{{"return": {{}}, "id": {}}}"#, heard["id"])).await;
        format!("{} {}", heard["execute"].as_str().unwrap(), heard["arguments"]["reboot"])
    }

    #[tokio::test]
    async fn a8_a_guest_without_a_timer_starts_again_and_one_with_it_is_let_be() {
        let (qmp, mut peer) = connected(Duration::from_secs(5)).await;
        let computed = AtomicU64::new(0);
        // Half a second between two looks.
        let clock = || Some(Duration::from_millis(computed.fetch_add(500, Ordering::Relaxed)));
        let log = Logger::root(Discard, o!());
        let watched = watch(&qmp, clock, &log);
        let script = async {
            for register in ["0x00010000", "0x000300ec", "0x000300ec", "0x000300ec", "0x000300ec"] {
                answer(&mut peer, register, 268_435_455).await;
            }
            assert_eq!(asked(&mut peer).await, "set-action \"reset\"");
            assert_eq!(asked(&mut peer).await, "system_reset null");
            assert_eq!(asked(&mut peer).await, "set-action \"shutdown\"");
            for register in ["0x00010000", "0x000300ec", "0x000300ec", "0x000000ec"] {
                answer(&mut peer, register, 268_435_455).await;
            }
        };
        let (result, ()) = tokio::join!(watched, script);
        result.unwrap();
    }

    #[test]
    fn a8_a_timer_that_would_end_at_once_is_mistaken_whatever_the_kernels_own_tick() {
        let timer = |register, count| timer_in(&lapic(register, count));
        assert_eq!(timer("0x000200ec", 249_991), Timer::Runs, "four milliseconds");
        assert_eq!(timer("0x000200ec", 62_500), Timer::Runs, "one millisecond");
        assert_eq!(timer("0x000200ec", 31_249), Timer::Rushes);
        assert_eq!(timer("0x000000ec", 31_249), Timer::Runs, "set anew for every time");
    }

    #[test]
    fn a8_what_cannot_be_read_is_no_reason_to_start_a_guest_again() {
        for text in ["", "LVTT", "LVTT\t0x", "LVTT\t 0x000200ec", "unknown command: 'info lapic'"] {
            assert_eq!(timer_in(text), Timer::Runs, "{text:?}");
        }
    }

    #[test]
    fn the_time_of_a_process_grows() {
        let before = computed(std::process::id()).unwrap();
        while computed(std::process::id()).unwrap() == before {}
        assert_eq!(computed(u32::MAX), None);
    }
}
