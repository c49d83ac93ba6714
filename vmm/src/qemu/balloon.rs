//! Memory that a guest does not use, taken from it for a moment: it comes back empty, and a file has a hole for it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::qmp::{Balloon, Qmp, QueryBalloon, QueryMemorySize};
use crate::error::QmpError;

/// Less than any guest's kernel leaves: the guest gives what it has.
const LITTLE: u64 = 16 << 20;
/// How long either way may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A guest that gives nothing for so long has nothing more, or no driver.
const STILL: Duration = Duration::from_millis(300);
/// QEMU tells by an event at most once a second, so it is asked.
const PAUSE: Duration = Duration::from_millis(20);

/// Takes all memory that the guest does not use, and gives it back.
pub(super) async fn squeeze(qmp: &Qmp) -> Result<(), QmpError> {
    let all = qmp.execute(QueryMemorySize {}).await?.base_memory;
    inflate_to(qmp, LITTLE).await?;
    inflate_to(qmp, all).await
}

/// Returns when the guest has so many bytes, or as close to that as it goes.
async fn inflate_to(qmp: &Qmp, value: u64) -> Result<(), QmpError> {
    qmp.execute(Balloon { value }).await?;
    let end = Instant::now() + PATIENCE;
    let (mut last, mut since) = (0, Instant::now());
    while Instant::now() < end {
        let actual = qmp.execute(QueryBalloon {}).await?.actual;
        if actual == value || actual == last && since.elapsed() > STILL {
            return Ok(());
        }
        if actual != last {
            (last, since) = (actual, Instant::now());
        }
        sleep(PAUSE).await;
    }
    Ok(())
}
