//! Waiting for what nobody tells of.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{Context, Result};

/// How often it is looked.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks again and again until there is something to see. What the last look failed with is the failure when there
/// still is not after `patience`.
pub fn eventually<T>(patience: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Err(failure) if Instant::now() > deadline => {
                return Err(failure).context(format_args!("after {patience:?}"));
            }
            Err(_) => sleep(PAUSE),
            seen => return seen,
        }
    }
}
