//! Whose turn it is on a processor that the agent shares with the pod.
//!
//! A process that writes line by line would be stopped at each line, so that the agent may move it: two switches for
//! every line, and a packet. As a batch process the agent waits until the writer has filled the pipe, or waits itself,
//! and moves all there is at once; on an idle processor it runs at once all the same (sched(7), SCHED_BATCH).

use std::io;

/// The agent interrupts no process of the pod's.
pub(crate) fn behind_the_pod() {
    if let Err(error) = set(libc::SCHED_BATCH) {
        ::log::warn!("the agent interrupts the pod's processes: {error}");
    }
}

/// This process, a fork of the agent, and those it makes, are scheduled as all others.
pub(crate) fn as_any() -> io::Result<()> {
    set(libc::SCHED_OTHER)
}

fn set(policy: libc::c_int) -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the structure, and changes nothing but this process' scheduling.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
