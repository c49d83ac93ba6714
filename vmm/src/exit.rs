//! How a virtual machine ended.

use std::fmt;

use tokio::sync::watch;

/// A process of a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The machine itself.
    Qemu,
    /// The daemon behind a virtio-fs share.
    Virtiofsd,
    /// The daemon of Dragonfly Nydus behind a virtio-fs share.
    Nydusd,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Who::Qemu => "qemu",
            Who::Virtiofsd => "virtiofsd",
            Who::Nydusd => "nydusd",
        })
    }
}

/// What became of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// It ended with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
    /// It lives, and its guest will never run again: QEMU's word for the state, such as `internal-error` or
    /// `guest-panicked`.
    Stuck(String),
    /// It could not be waited for.
    Lost(String),
}

/// Why a virtual machine is no more: the first of its processes that went, and its last words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmExit {
    /// The process.
    pub who: Who,
    /// What became of it.
    pub how: How,
    /// The last lines it wrote to its standard error, joined by `" | "`; often empty.
    pub last_words: String,
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            How::Exited(status) => write!(f, "{} ended with status {status}", self.who)?,
            How::Killed(signal) => write!(f, "{} was killed by signal {signal}", self.who)?,
            How::Stuck(state) if state == "guest-panicked" => f.write_str("the guest's kernel panicked")?,
            How::Stuck(state) => write!(f, "{} is stuck in state {state}", self.who)?,
            How::Lost(why) => write!(f, "{} was lost: {why}", self.who)?,
        }
        if self.last_words.is_empty() { Ok(()) } else { write!(f, ": {}", self.last_words) }
    }
}

/// Says on `first` that the machine is of no more use, unless that is known already: the first exit explains those
/// that follow from it.
pub(crate) fn publish(first: &watch::Sender<Option<VmExit>>, exit: VmExit) {
    first.send_if_modified(|first| first.is_none() && first.replace(exit).is_none());
}
