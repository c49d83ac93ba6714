//! System calls that may block for long, or for ever in an uninterruptible state, run on a thread of their own.

use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// Runs `work` on a fresh thread and waits for it. A stuck disk then costs this one caller, not the whole shim.
///
/// # Errors
/// What `work` returns, or that no thread could be made.
pub(crate) async fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, outcome) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_string())
        .stack_size(256 * 1024)
        .spawn(move || {
            // The caller may have been dropped at its deadline; the work is done all the same.
            let _ = done.send(work());
        })
        .map_err(Error::io(format_args!("thread for {name}")))?;
    outcome
        .await
        .unwrap_or_else(|_| Err(Error::Failed(format!("{name}: the thread ended without an answer"))))
}
