//! Why a machine is lost, for the operator who has to do something about it.

use std::{future::Future, time::Duration};

use tokio::{sync::watch, time::timeout};
use vmm::VmExit;

use super::health;

/// How long the end of a machine may come after that of the agent's connection, which it explains.
const CAUSE_FOLLOWS: Duration = Duration::from_secs(1);

/// How long after a connection has ended it is known why.
pub(super) const TOLD: Duration = CAUSE_FOLLOWS.saturating_mul(2);

/// How Linux begins the line that says why it panics (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";

/// Bytes of what the guest says of its panic that are told.
const REASON: usize = 200;

/// Where an operator finds more.
const MORE: &str = "the end of the guest's console is in the shim's log";

/// Waits until the machine is of no more use, and says why: any process of it is gone (`exit`), or the agent's connection
/// (`closed`), or the agent does not answer (`silent`).
pub(super) async fn why(
    mut exit: watch::Receiver<Option<VmExit>>,
    closed: impl Future<Output = ()>,
    silent: impl Future<Output = ()>,
) -> String {
    let mut died = std::pin::pin!(async {
        match exit.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => exit.to_string(),
            _ => "the virtual machine was dropped".to_owned(),
        }
    });
    tokio::select! {
        why = &mut died => why,
        () = closed => {
            let cause = timeout(CAUSE_FOLLOWS, died).await;
            cause.unwrap_or_else(|_| format!("the guest's agent closed its connection; {MORE}"))
        }
        () = silent => health::LOST.to_owned(),
    }
}

/// The same, but for a guest whose kernel has panicked, which its console tells of: QEMU may just have ended.
pub(super) fn explained(why: String, console: &str) -> String {
    match console.lines().rev().find_map(|line| line.split_once(PANIC)) {
        Some((_, reason)) => {
            format!("the guest's kernel panicked: {}; {MORE}", &reason[..reason.floor_char_boundary(REASON)])
        }
        None => why,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::sleep;
    use vmm::{How, Who};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_closed_is_explained_by_an_end_that_follows_soon() {
        let exit = watch::Sender::new(None);
        let ends = async {
            sleep(CAUSE_FOLLOWS / 2).await;
            exit.send_replace(Some(VmExit {
                who: Who::Qemu,
                how: How::Killed(9),
                last_words: String::new(),
            }));
        };
        let (told, ()) = tokio::join!(why(exit.subscribe(), ready(()), pending()), ends);
        assert_eq!(told, "qemu was killed by signal 9");
        exit.send_replace(None);
        let told = why(exit.subscribe(), ready(()), pending()).await;
        assert_eq!(told, format!("the guest's agent closed its connection; {MORE}"));
        assert_eq!(why(exit.subscribe(), pending(), ready(())).await, health::LOST);
    }

    #[test]
    fn what_the_kernel_says_of_its_panic_is_told() {
        let why = || "qemu ended with status 0".to_owned();
        let console = "[ 3.1] int3: 0000 [#1] SMP\n[ 3.2] Kernel panic - not syncing: Fatal exception\n[ 3.3] Rebooting";
        assert_eq!(
            explained(why(), console),
            format!("the guest's kernel panicked: Fatal exception; {MORE}")
        );
        assert_eq!(explained(why(), "[ 3.1] random: crng init done\n"), why());
        let long = explained(why(), &format!("{PANIC}{}", "é".repeat(REASON)));
        assert_eq!(long, format!("the guest's kernel panicked: {}; {MORE}", "é".repeat(REASON / 2)));
    }
}
