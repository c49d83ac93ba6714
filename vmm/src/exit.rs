//! How a virtual machine ended.

use std::fmt;
use std::time::Duration;

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
            How::Killed(libc::SIGBUS) => write!(
                f,
                "{} was killed by signal 7 (SIGBUS): no room was left for the machine's memory, in huge pages or on the file \
                 system of file_mem_backend or template_path",
                self.who
            )?,
            How::Killed(signal) => write!(f, "{} was killed by signal {signal}", self.who)?,
            How::Stuck(state) if state == "guest-panicked" => f.write_str("the guest's kernel panicked")?,
            How::Stuck(state) => write!(f, "{} is stuck in state {state}", self.who)?,
            How::Lost(why) => write!(f, "{} was lost: {why}", self.who)?,
        }
        if self.last_words.is_empty() { Ok(()) } else { write!(f, ": {}", self.last_words) }
    }
}

/// How long a daemon's good end is kept back. It ends so once QEMU has closed the connection to it, so that the end of
/// QEMU, which explains it, is on its way.
const CAUSE_FOLLOWS: Duration = Duration::from_secs(1);

/// The same as [`publish`], but what another exit explains waits for that.
pub(crate) async fn publish_after_its_cause(first: &watch::Sender<Option<VmExit>>, exit: VmExit) {
    if (exit.who, &exit.how) == (Who::Virtiofsd, &How::Exited(0)) {
        let mut known = first.subscribe();
        let _ = tokio::time::timeout(CAUSE_FOLLOWS, known.wait_for(Option::is_some)).await;
    }
    publish(first, exit);
}

/// Says on `first` that the machine is of no more use, unless that is known already: the first exit explains those
/// that follow from it.
pub(crate) fn publish(first: &watch::Sender<Option<VmExit>>, exit: VmExit) {
    first.send_if_modified(|first| first.is_none() && first.replace(exit).is_none());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(who: Who, how: How) -> VmExit {
        VmExit { who, how, last_words: String::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_ends_well_is_not_what_a_killed_qemu_died_of() {
        let first = watch::Sender::new(None);
        let (follows, cause) = (exit(Who::Virtiofsd, How::Exited(0)), exit(Who::Qemu, How::Killed(9)));
        tokio::join!(publish_after_its_cause(&first, follows.clone()), async {
            publish_after_its_cause(&first, cause.clone()).await;
        });
        assert_eq!(*first.borrow(), Some(cause));
        // Where QEMU lives on, it is told all the same; one that was killed is told at once.
        first.send_replace(None);
        publish_after_its_cause(&first, follows.clone()).await;
        assert_eq!(*first.borrow(), Some(follows));
        first.send_replace(None);
        let killed = exit(Who::Virtiofsd, How::Killed(9));
        let at_once = tokio::time::timeout(Duration::ZERO, publish_after_its_cause(&first, killed.clone()));
        at_once.await.unwrap();
        assert_eq!(*first.borrow(), Some(killed));
    }
}
