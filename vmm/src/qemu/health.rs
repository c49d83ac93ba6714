//! Is the machine well, and which of the host's threads are its processors?

use std::time::Duration;

use super::monitor::STUCK;
use super::qmp::{Qmp, QueryCpusFast, QueryStatus};
use crate::error::{QmpError, Unwell};
use crate::vm::VcpuThread;

/// How long a QEMU that is well may take to say so.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn check(qmp: &Qmp) -> Result<(), Unwell> {
    let now = qmp.execute_within(QueryStatus {}, PATIENCE).await?;
    if STUCK.contains(&now.status.as_str()) { Err(Unwell::Stuck(now.status)) } else { Ok(()) }
}

pub(super) async fn vcpu_threads(qmp: &Qmp) -> Result<Vec<VcpuThread>, QmpError> {
    let mut threads: Vec<VcpuThread> = qmp.execute(QueryCpusFast {}).await?;
    threads.sort_by_key(|thread| thread.vcpu);
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::qmp::tests::{Peer, connected};

    async fn told(status: &str) -> Result<(), Unwell> {
        let (qmp, mut peer) = connected(Duration::from_secs(5)).await;
        let answer = format!(r#"{{"status": "{status}", "running": false}}"#);
        tokio::join!(check(&qmp), peer.answer(&answer)).0
    }

    #[tokio::test]
    async fn b20_a_guest_that_will_never_run_again_is_told_by_its_state() {
        for status in ["running", "paused", "prelaunch", "suspended"] {
            told(status).await.unwrap();
        }
        for status in ["internal-error", "guest-panicked"] {
            let text = told(status).await.unwrap_err().to_string();
            assert_eq!(text, format!("the guest is stuck in state {status}"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn b20_a_qemu_that_does_not_answer_is_not_well() {
        let (qmp, _peer): (_, Peer) = connected(Duration::from_secs(60)).await;
        assert!(matches!(check(&qmp).await, Err(Unwell::Qmp(QmpError::Timeout { .. }))));
    }

    #[tokio::test]
    async fn b19_processors_are_told_in_order_with_their_threads() {
        let (qmp, mut peer) = connected(Duration::from_secs(5)).await;
        let cpu = |index: u32, thread: u32| {
            format!(
                r#"{{"cpu-index": {index}, "thread-id": {thread}, "qom-path": "/x", "props": {{"core-id": 0}},
                    "target": "x86_64"}}"#
            )
            .replace('\n', "")
        };
        let answer = format!("[{}, {}]", cpu(1, 71), cpu(0, 70));
        let threads = tokio::join!(vcpu_threads(&qmp), peer.answer(&answer)).0.unwrap();
        assert_eq!(threads, [VcpuThread { vcpu: 0, tid: 70 }, VcpuThread { vcpu: 1, tid: 71 }]);
    }
}
