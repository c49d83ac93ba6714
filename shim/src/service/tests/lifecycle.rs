//! One container from Create to Delete.

use std::time::Duration;

use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CreateTaskRequest, PidsRequest, ResizePtyRequest, StatsRequest, Status,
        UpdateTaskRequest,
    },
    protobuf::{MessageField, well_known_types::any::Any},
    shim_async::Task,
    ttrpc::{Code, r#async::TtrpcContext},
};
use tokio::time::Instant;

use crate::fakes::{code, later, on_fakes, soon, words};

#[test]
fn a_container_is_created_started_waited_for_and_deleted_and_containerd_told_in_this_order() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        assert_eq!(shim.state("c1").await.unwrap().0, Status::CREATED);
        let waiting = shim.waiting("c1");
        shim.start("c1").await.unwrap();
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
        shim.guest.init("c1").exits(7);
        assert_eq!(waiting.await.unwrap().unwrap(), 7);
        assert_eq!(shim.state("c1").await.unwrap(), (Status::STOPPED, 7));
        assert_eq!(shim.delete("c1").await.unwrap(), 7);
        assert_eq!(shim.published(4).await, ["create c1", "start c1", "exit c1 7", "delete c1 7"]);
        assert!(shim.nothing_is_left());
        assert_eq!(code(shim.state("c1").await), Code::NOT_FOUND);
    });
}

#[test]
fn a_wait_that_comes_late_gets_the_same_exit() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.init("c1").exits(3);
        assert_eq!(shim.published(1).await, ["exit c1 3"]);
        assert_eq!(shim.wait("c1").await.unwrap(), 3);
        assert_eq!(shim.wait("c1").await.unwrap(), 3);
    });
}

#[test]
fn an_exit_status_the_guest_makes_up_is_clamped() {
    for (claimed, told) in [(256, 255), (i32::MAX, 255), (-1, 0)] {
        on_fakes(async move |shim| {
            shim.runs("c1").await;
            shim.guest.init("c1").exits(claimed);
            assert_eq!(shim.wait("c1").await.unwrap(), told);
            assert_eq!(shim.published(1).await, [format!("exit c1 {told}")]);
        });
    }
}

#[test]
fn a_signal_reaches_the_process_and_its_death_by_it_is_told() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.kill("c1", 15).await.unwrap();
        assert_eq!(shim.wait("c1").await.unwrap(), 143);
        assert_eq!(shim.published(1).await, ["exit c1 143"]);
        shim.kill("c1", 9).await.unwrap();
        assert_eq!(code(shim.kill("c1", 15).await), Code::NOT_FOUND);
    });
}

#[test]
fn a_process_the_guest_no_longer_has_is_killed_already() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.refuses("SignalProcess", Code::NOT_FOUND, "no such process");
        shim.kill("c1", 9).await.unwrap();
        assert_eq!(code(shim.kill("c1", 15).await), Code::NOT_FOUND);
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING, "its exit is still to come");
    });
}

#[test]
fn a_pause_the_guest_does_not_answer_holds_up_no_exit() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.create_as(shim.request_in("c1", "c2")).await.unwrap();
        shim.start("c2").await.unwrap();
        shim.guest.never_answers("PauseContainer");
        let pausing = shim.pausing("c2");
        shim.guest.is_asked("PauseContainer").await;
        let begun = Instant::now();
        shim.guest.init("c2").exits(3);
        assert_eq!(soon(shim.waiting("c2")).await.unwrap(), 3);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(shim.published(3).await, ["create c2", "start c2", "exit c2 3"]);
        pausing.abort();
    });
}

#[test]
fn a_start_the_guest_does_not_answer_holds_up_no_kill() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        shim.guest.never_answers("StartContainer");
        let starting = shim.starting("c1");
        shim.guest.is_asked("StartContainer").await;
        let begun = Instant::now();
        soon(shim.killing("c1", 9)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        later(Duration::from_secs(61)).await;
        assert_eq!(code(starting.await.unwrap()), Code::DEADLINE_EXCEEDED);
        assert_eq!(shim.wait("c1").await.unwrap(), 137);
        assert_eq!(shim.published(2).await, ["create c1", "exit c1 137"]);
    });
}

#[test]
fn what_is_killed_before_its_start_has_its_exit_told_and_cannot_be_started() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        let waiting = shim.waiting("c1");
        shim.kill("c1", 9).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), 137);
        assert!(words(shim.start("c1").await).contains("cannot start a stopped container"));
        assert_eq!(shim.delete("c1").await.unwrap(), 137);
        assert_eq!(shim.published(3).await, ["create c1", "exit c1 137", "delete c1 137"]);
    });
}

#[test]
fn one_of_two_deletes_at_once_deletes() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.init("c1").exits(0);
        shim.wait("c1").await.unwrap();
        let (first, second) = (shim.deleting("c1"), shim.deleting("c1"));
        let answers = [first.await.unwrap(), second.await.unwrap()];
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        assert_eq!(shim.published(2).await, ["exit c1 0", "delete c1 0"]);
    });
}

#[test]
fn what_was_never_started_can_be_deleted() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        let waiting = shim.waiting("c1");
        assert_eq!(shim.delete("c1").await.unwrap(), 137);
        assert_eq!(waiting.await.unwrap().unwrap(), 137);
        assert_eq!(shim.published(3).await, ["create c1", "exit c1 137", "delete c1 137"]);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_call_in_the_wrong_state_is_refused_as_runcs_shim_does_and_changes_nothing() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        assert!(words(shim.pause("c1").await).contains("cannot pause a created container"));
        assert!(words(shim.resume("c1").await).contains("cannot resume a created container"));
        shim.start("c1").await.unwrap();
        for refused in [shim.start("c1").await, shim.resume("c1").await, shim.delete("c1").await.map(drop)] {
            assert_eq!(code(refused), Code::UNKNOWN);
        }
        shim.pause("c1").await.unwrap();
        assert_eq!(shim.state("c1").await.unwrap().0, Status::PAUSED);
        assert!(words(shim.pause("c1").await).contains("cannot pause a paused container"));
        assert!(words(shim.exec("c1/e1").await).contains("cannot exec in a paused container"));
        shim.resume("c1").await.unwrap();
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
        let told = ["create c1", "start c1", "paused c1", "resumed c1"];
        assert_eq!(shim.published(4).await, told);
    });
}

#[test]
fn a_paused_container_can_be_killed_and_is_stopped_then() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.pause("c1").await.unwrap();
        shim.kill("c1", 9).await.unwrap();
        assert_eq!(shim.wait("c1").await.unwrap(), 137);
        assert_eq!(shim.state("c1").await.unwrap(), (Status::STOPPED, 137));
        assert!(words(shim.pause("c1").await).contains("a stopped container"));
        assert!(words(shim.resume("c1").await).contains("a stopped container"));
        assert_eq!(shim.published(2).await, ["paused c1", "exit c1 137"]);
    });
}

#[test]
fn a_start_the_guest_refuses_leaves_the_container_created() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        shim.guest.refuses("StartContainer", Code::INTERNAL, "no such program: sh");
        assert!(words(shim.start("c1").await).contains("no such program: sh"));
        assert_eq!(shim.state("c1").await.unwrap().0, Status::CREATED);
        shim.guest.obeys();
        shim.start("c1").await.unwrap();
        assert_eq!(shim.published(2).await, ["create c1", "start c1"]);
    });
}

#[test]
fn a_start_that_is_dropped_at_its_deadline_is_carried_on_with() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        let late = shim.guest.delays("StartContainer");
        let starting = shim.starting("c1");
        shim.guest.is_asked("StartContainer").await;
        starting.abort();
        assert!(starting.await.unwrap_err().is_cancelled());
        drop(late);
        assert_eq!(shim.published(2).await, ["create c1", "start c1"]);
        shim.guest.init("c1").exits(6);
        assert_eq!(shim.wait("c1").await.unwrap(), 6);
        assert_eq!(shim.published(1).await, ["exit c1 6"]);
    });
}

#[test]
fn a_pause_that_is_dropped_at_its_deadline_is_carried_on_with() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let late = shim.guest.delays("PauseContainer");
        let pausing = shim.pausing("c1");
        shim.guest.is_asked("PauseContainer").await;
        pausing.abort();
        assert!(pausing.await.unwrap_err().is_cancelled());
        drop(late);
        assert_eq!(shim.published(1).await, ["paused c1"]);
        assert_eq!(shim.state("c1").await.unwrap().0, Status::PAUSED);
        shim.resume("c1").await.unwrap();
        assert_eq!(shim.published(1).await, ["resumed c1"]);
        shim.guest.init("c1").exits(0);
        assert_eq!(shim.published(1).await, ["exit c1 0"]);
    });
}

#[test]
fn only_containers_the_shim_has_run_out_of_memory() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        for claimed in ["c2", "", "../c1", "c1"] {
            shim.guest.runs_out_of_memory(claimed);
        }
        assert_eq!(shim.published(1).await, ["oom c1"]);
    });
}

#[test]
fn the_shim_ends_when_it_is_empty_and_before_that_only_when_told_to_end_now() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        assert!(!shim.shut_down(false).await);
        assert!(shim.shut_down(true).await);
    });
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        shim.delete("c1").await.unwrap();
        shim.published(3).await;
        assert!(shim.shut_down(false).await);
    });
}

#[test]
fn checkpoints_are_not_implemented() {
    on_fakes(async |shim| {
        let refused =
            shim.service.checkpoint(&TtrpcContext::default(), CheckpointTaskRequest::default()).await;
        assert_eq!(code(refused), Code::UNIMPLEMENTED);
        let restore = CreateTaskRequest { checkpoint: "/checkpoint".into(), ..shim.request("c1") };
        assert_eq!(code(shim.create_as(restore).await), Code::UNIMPLEMENTED);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_container_nobody_created_is_not_found_by_any_call() {
    on_fakes(async |shim| {
        for refused in [
            shim.start("c1").await,
            shim.kill("c1", 9).await,
            shim.pause("c1").await,
            shim.resume("c1").await,
            shim.exec("c1/e1").await,
            shim.close_stdin("c1").await,
            shim.delete("c1").await.map(drop),
            shim.wait("c1").await.map(drop),
            shim.state("c1").await.map(drop),
        ] {
            assert_eq!(code(refused), Code::NOT_FOUND);
        }
        shim.runs("c1").await;
        for refused in
            [shim.start("c1/e1").await, shim.kill("c1/e1", 9).await, shim.close_stdin("c1/e1").await]
        {
            assert_eq!(code(refused), Code::NOT_FOUND);
        }
    });
}

#[test]
fn limits_and_terminal_sizes_reach_the_guest() {
    on_fakes(async |shim| {
        let context = TtrpcContext::default();
        shim.create_as(CreateTaskRequest { terminal: true, ..shim.request("c1") }).await.unwrap();
        let early = ResizePtyRequest { id: "c1".into(), width: 97, height: 31, ..Default::default() };
        shim.service.resize_pty(&context, early).await.unwrap();
        shim.guest.is_asked("TtyWinResize c1 97x31").await;
        shim.start("c1").await.unwrap();
        let value = br#"{"memory": {"limit": 1048576}}"#.to_vec();
        let resources = MessageField::some(Any { value, ..Default::default() });
        let update = UpdateTaskRequest { id: "c1".into(), resources, ..Default::default() };
        shim.service.update(&context, update).await.unwrap();
        shim.guest.is_asked("UpdateContainer c1 1048576").await;
        let size = ResizePtyRequest { id: "c1".into(), width: 80, height: 24, ..Default::default() };
        shim.service.resize_pty(&context, size).await.unwrap();
        shim.guest.is_asked("TtyWinResize c1 80x24").await;
        let stats = StatsRequest { id: "c1".into(), ..Default::default() };
        assert!(shim.service.stats(&context, stats).await.unwrap().stats.is_some());
        shim.published(2).await;
    });
}

/// containerd 1.7 and 2 delete, when they start, what has no processes.
#[test]
fn the_machine_stands_for_the_container_among_the_hosts_processes_until_it_is_deleted() {
    on_fakes(async |shim| {
        let processes = async || {
            let asked = PidsRequest { id: "c1".into(), ..Default::default() };
            let answer = shim.service.pids(&TtrpcContext::default(), asked).await?;
            Ok(answer.processes.iter().map(|process| process.pid).collect::<Vec<_>>())
        };
        let machine = [std::process::id()];
        shim.create("c1").await.unwrap();
        assert_eq!(processes().await.unwrap(), machine);
        shim.start("c1").await.unwrap();
        assert_eq!(processes().await.unwrap(), machine);
        shim.guest.init("c1").exits(0);
        assert_eq!(shim.published(3).await, ["create c1", "start c1", "exit c1 0"]);
        assert_eq!(processes().await.unwrap(), machine);
        shim.delete("c1").await.unwrap();
        assert_eq!(code(processes().await), Code::NOT_FOUND);
        assert_eq!(shim.published(1).await, ["delete c1 0"]);
    });
}
