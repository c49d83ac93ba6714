//! Machines that die, and guests that hang.

use std::time::Duration;

use containerd_shim_protos::{api::Status, ttrpc::Code};

use tokio::time::Instant;

use crate::fakes::{Boot, Shim, code, later, on_fakes, soon, words};

#[test]
fn a_machine_that_dies_before_its_agent_is_reached_fails_the_create_at_once() {
    on_fakes(async |shim| {
        shim.machine.boots(Boot::Mute);
        let creating = shim.creating(shim.request("c1"));
        shim.machine.dies().await;
        let answer = words(creating.await.unwrap());
        assert!(answer.contains("last words") && answer.contains("the console's last line"), "{answer}");
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_machine_that_dies_while_the_guest_works_on_a_create_fails_it_at_once() {
    for method in ["Check", "CreateSandbox", "CreateContainer"] {
        on_fakes(async move |shim| {
            shim.guest.never_answers(method);
            let creating = shim.creating(shim.request("c1"));
            shim.guest.is_asked(method).await;
            shim.machine.dies().await;
            let answer = creating.await.unwrap();
            assert!(matches!(code(answer), Code::UNAVAILABLE | Code::UNKNOWN));
            assert!(shim.nothing_is_left());
        });
    }
}

#[test]
fn a_created_container_whose_machine_dies_has_never_run() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        let waiting = shim.waiting("c1");
        shim.machine.dies().await;
        assert_eq!(waiting.await.unwrap().unwrap(), 255);
        assert_eq!(shim.state("c1").await.unwrap(), (Status::STOPPED, 255));
        assert!(shim.start("c1").await.is_err());
        assert_eq!(shim.delete("c1").await.unwrap(), 255);
        assert_eq!(shim.published(3).await, ["create c1", "exit c1 255", "delete c1 255"]);
    });
}

#[test]
fn a_running_container_whose_machine_dies_was_killed() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let waiting = shim.waiting("c1");
        shim.machine.dies().await;
        assert_eq!(waiting.await.unwrap().unwrap(), 137);
        shim.kill("c1", 9).await.unwrap();
        assert_eq!(code(shim.kill("c1", 15).await), Code::NOT_FOUND);
        assert!(shim.exec("c1/e1").await.is_err());
        assert_eq!(shim.delete("c1").await.unwrap(), 137);
        assert_eq!(shim.published(2).await, ["exit c1 137", "delete c1 137"]);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_machine_that_dies_takes_execs_along_and_each_exit_is_told_once_execs_first() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.execs("c1/e1").await;
        let waiting = [shim.waiting("c1/e1"), shim.waiting("c1")];
        shim.machine.dies().await;
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap().unwrap(), 137);
        }
        assert_eq!(shim.published(2).await, ["exit c1/e1 137", "exit c1 137"]);
        assert_eq!(shim.delete("c1/e1").await.unwrap(), 137);
    });
}

#[test]
fn an_exec_that_was_not_started_ends_with_the_machine() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.exec("c1/e1").await.unwrap();
        assert_eq!(shim.published(1).await, ["exec-added c1/e1"]);
        let waiting = shim.waiting("c1/e1");
        shim.machine.dies().await;
        assert_eq!(waiting.await.unwrap().unwrap(), 255);
        assert_eq!(shim.state("c1/e1").await.unwrap(), (Status::STOPPED, 255));
        assert_eq!(shim.published(1).await, ["exit c1 137"]);
    });
}

#[test]
fn a_machine_that_dies_during_a_start_fails_it_and_the_container_has_never_run() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        shim.guest.never_answers("StartContainer");
        let (started, ()) = tokio::join!(shim.start("c1"), async {
            shim.guest.is_asked("StartContainer").await;
            shim.machine.dies().await;
        });
        assert_eq!(code(started), Code::UNAVAILABLE);
        assert_eq!(shim.wait("c1").await.unwrap(), 255);
        assert_eq!(shim.published(2).await, ["create c1", "exit c1 255"]);
    });
}

#[test]
fn a_machine_that_dies_takes_every_container_of_its_pod_along() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.create_as(shim.request_in("c1", "c2")).await.unwrap();
        shim.start("c2").await.unwrap();
        shim.create_as(shim.request_in("c1", "c3")).await.unwrap();
        assert_eq!(shim.published(3).await, ["create c2", "start c2", "create c3"]);
        shim.machine.dies().await;
        let mut exits = shim.published(3).await;
        exits.sort();
        assert_eq!(exits, ["exit c1 137", "exit c2 137", "exit c3 255"]);
    });
}

#[test]
fn nobody_waits_for_a_guest_whose_machine_is_being_stopped() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.never_answers("DestroySandbox");
        shim.guest.never_answers("PauseContainer");
        let (waiting, pausing) = (shim.waiting("c1"), shim.pausing("c1"));
        shim.guest.is_asked("PauseContainer").await;
        let service = shim.service.clone();
        let stopping = tokio::spawn(async move { service.stop().await });
        shim.guest.is_asked("DestroySandbox").await;
        let begun = Instant::now();
        assert_eq!(code(pausing.await.unwrap()), Code::UNAVAILABLE);
        assert_eq!(code(shim.kill("c1", 15).await), Code::UNAVAILABLE);
        assert_eq!(waiting.await.unwrap().unwrap(), 137);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(shim.published(1).await, ["exit c1 137"]);
        soon(stopping).await;
    });
}

#[test]
fn a_machine_whose_agent_dies_is_stopped() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        shim.machine.hangs_up().await;
        assert_eq!(shim.wait("c1").await.unwrap(), 255);
        shim.service.stop().await;
        assert!(shim.nothing_is_left());
        assert_eq!(shim.published(2).await, ["create c1", "exit c1 255"]);
    });
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.machine.hangs_up().await;
        assert_eq!(shim.wait("c1").await.unwrap(), 137);
        assert_eq!(shim.delete("c1").await.unwrap(), 137);
        assert_eq!(shim.published(2).await, ["exit c1 137", "delete c1 137"]);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_call_that_the_end_of_the_agent_cuts_off_is_told_of_it() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.never_answers("PauseContainer");
        let pausing = shim.pausing("c1");
        shim.guest.is_asked("PauseContainer").await;
        shim.machine.hangs_up().await;
        let said = words(soon(pausing).await);
        assert!(
            said.contains("the virtual machine is gone: the guest's agent closed its connection"),
            "{said}"
        );
        assert_eq!(shim.published(1).await, ["exit c1 137"]);
    });
}

#[test]
fn a_guest_that_hangs_does_not_hold_up_the_removal_of_what_never_ran() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        shim.guest.never_answers("SignalProcess");
        let begun = Instant::now();
        let deleting = shim.deleting("c1");
        assert_eq!(soon(deleting).await.unwrap(), 137);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_eq!(shim.published(3).await, ["create c1", "exit c1 137", "delete c1 137"]);
    });
}

#[test]
fn a_guest_that_does_not_answer_sigkill_loses_its_machine() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.never_answers("SignalProcess");
        let killing = shim.killing("c1", 9);
        shim.guest.is_asked("SignalProcess").await;
        later(Duration::from_secs(6)).await;
        killing.await.unwrap().unwrap();
        assert_eq!(soon(shim.waiting("c1")).await.unwrap(), 137);
        assert_eq!(shim.machine.machines_on(), 0);
        assert_eq!(shim.published(1).await, ["exit c1 137"]);
    });
}

#[test]
fn a_guest_that_does_not_answer_another_signal_keeps_its_machine() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.never_answers("SignalProcess");
        let killing = shim.killing("c1", 15);
        shim.guest.is_asked("SignalProcess").await;
        later(Duration::from_secs(6)).await;
        assert_eq!(code(killing.await.unwrap()), Code::DEADLINE_EXCEEDED);
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
    });
}

/// With a second container, `c2`.
async fn runs_a_pod_deaf_to_signals(shim: &Shim) {
    shim.runs("c1").await;
    shim.create_as(shim.request_in("c1", "c2")).await.unwrap();
    shim.start("c2").await.unwrap();
    assert_eq!(shim.published(2).await, ["create c2", "start c2"]);
    shim.guest.never_answers("SignalProcess");
}

#[test]
fn a_pods_guest_that_does_not_answer_at_all_loses_its_machine_by_sigkill() {
    on_fakes(async |shim| {
        runs_a_pod_deaf_to_signals(shim).await;
        shim.guest.never_answers("Check");
        soon(shim.killing("c2", 9)).await.unwrap();
        assert_eq!(soon(shim.waiting("c2")).await.unwrap(), 137);
        assert_eq!(shim.machine.machines_on(), 0);
        assert_eq!(shim.delete("c2").await.unwrap(), 137);
        assert_eq!(shim.delete("c1").await.unwrap(), 137);
        let mut published = shim.published(4).await;
        published.sort();
        assert_eq!(published, ["delete c1 137", "delete c2 137", "exit c1 137", "exit c2 137"]);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_pods_guest_that_is_only_slow_keeps_its_machine() {
    on_fakes(async |shim| {
        runs_a_pod_deaf_to_signals(shim).await;
        let killing = shim.killing("c2", 9);
        shim.guest.is_asked("SignalProcess").await;
        later(Duration::from_secs(6)).await;
        assert_eq!(code(killing.await.unwrap()), Code::DEADLINE_EXCEEDED);
        assert_eq!(shim.state("c2").await.unwrap().0, Status::RUNNING);
    });
}

#[test]
fn c5_a_guest_that_misses_two_questions_in_a_row_is_lost() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let waiting = shim.waiting("c1");
        shim.guest.never_answers("Check");
        assert_eq!(soon(waiting).await.unwrap(), 137);
        // The first was the start's.
        assert_eq!(shim.guest.noted("Check").len(), 3, "{:?}", shim.guest.noted(""));
        assert_eq!(shim.machine.machines_on(), 0);
        assert_eq!(shim.published(1).await, ["exit c1 137"]);
    });
}
