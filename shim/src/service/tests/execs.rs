//! Further processes in a container.

use std::time::Duration;

use containerd_shim_protos::{api::Status, ttrpc::Code};
use tokio::time::Instant;

use crate::fakes::{code, on_fakes, settled, soon, words};

#[test]
fn an_exec_is_added_started_and_deleted_and_containerd_told_of_all_but_the_last() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.exec("c1/e1").await.unwrap();
        assert_eq!(shim.state("c1/e1").await.unwrap().0, Status::CREATED);
        let waiting = shim.waiting("c1/e1");
        shim.start("c1/e1").await.unwrap();
        assert_eq!(shim.state("c1/e1").await.unwrap().0, Status::RUNNING);
        assert_eq!(code(shim.delete("c1/e1").await), Code::UNKNOWN);
        shim.guest.exec().exits(4);
        assert_eq!(waiting.await.unwrap().unwrap(), 4);
        assert_eq!(shim.state("c1/e1").await.unwrap(), (Status::STOPPED, 4));
        assert_eq!(shim.delete("c1/e1").await.unwrap(), 4);
        assert_eq!(code(shim.state("c1/e1").await), Code::NOT_FOUND);
        let told = ["exec-added c1/e1", "exec-started c1/e1", "exit c1/e1 4"];
        assert_eq!(shim.published(3).await, told);
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
    });
}

#[test]
fn an_exec_that_fails_says_so_in_the_guests_words_and_the_container_runs_on() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.exec("c1/e1").await.unwrap();
        shim.guest.refuses("ExecProcess", Code::INVALID_ARGUMENT, "exec: \"ls\": not found in $PATH");
        let waiting = shim.waiting("c1/e1");
        assert!(words(shim.start("c1/e1").await).contains("exec: \"ls\": not found in $PATH"));
        assert_eq!(waiting.await.unwrap().unwrap(), 255);
        assert!(words(shim.start("c1/e1").await).contains("has been started before"));
        assert_eq!(shim.delete("c1/e1").await.unwrap(), 255);
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
        assert_eq!(shim.published(1).await, ["exec-added c1/e1"]);
    });
}

#[test]
fn an_exec_whose_start_is_dropped_at_its_deadline_is_carried_on_with() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.exec("c1/e1").await.unwrap();
        let late = shim.guest.delays("ExecProcess");
        let starting = shim.starting("c1/e1");
        shim.guest.is_asked("ExecProcess").await;
        starting.abort();
        assert!(starting.await.unwrap_err().is_cancelled());
        drop(late);
        assert_eq!(shim.published(2).await, ["exec-added c1/e1", "exec-started c1/e1"]);
        shim.guest.exec().exits(6);
        assert_eq!(shim.wait("c1/e1").await.unwrap(), 6);
        assert_eq!(shim.published(1).await, ["exit c1/e1 6"]);
    });
}

#[test]
fn an_exec_id_is_given_once_until_its_exec_is_deleted() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        for status in [1, 2] {
            shim.execs("c1/e1").await;
            assert_eq!(code(shim.exec("c1/e1").await), Code::ALREADY_EXISTS);
            shim.guest.exec().exits(status);
            assert_eq!(shim.wait("c1/e1").await.unwrap(), status as u32);
            assert_eq!(code(shim.exec("c1/e1").await), Code::ALREADY_EXISTS);
            shim.delete("c1/e1").await.unwrap();
            assert_eq!(shim.published(1).await, [format!("exit c1/e1 {status}")]);
        }
    });
}

#[test]
fn an_exec_may_be_called_as_its_container() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.execs("c1/c1").await;
        shim.kill("c1/c1", 15).await.unwrap();
        assert_eq!(shim.wait("c1/c1").await.unwrap(), 143);
        shim.published(1).await;
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
    });
}

#[test]
fn an_exec_that_cannot_be_one_is_refused_and_its_id_stays_free() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        assert_eq!(code(shim.exec("c1/..").await), Code::INVALID_ARGUMENT);
        let without = shim.exec_as("c1/e1", |request| request.spec.clear()).await;
        assert!(words(without).contains("no process given"));
        let idle = shim.exec_as("c1/e1", |request| {
            request.spec.mut_or_insert_default().value =
                br#"{"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": []}"#.to_vec();
        });
        assert!(words(idle.await).contains("args is empty"));
        shim.execs("c1/e1").await;
    });
}

#[test]
fn a_signal_for_an_exec_is_none_for_its_container() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.exec("c1/e1").await.unwrap();
        assert_eq!(code(shim.kill("c1/e1", 15).await), Code::FAILED_PRECONDITION);
        shim.start("c1/e1").await.unwrap();
        shim.kill("c1/e1", 9).await.unwrap();
        assert_eq!(shim.wait("c1/e1").await.unwrap(), 137);
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
        assert_eq!(shim.published(3).await[2], "exit c1/e1 137");
    });
}

#[test]
fn the_exits_of_execs_that_end_with_their_container_are_told_before_its_own() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.execs("c1/e1").await;
        let exec = shim.guest.exec();
        shim.guest.init("c1").exits(0);
        settled().await;
        exec.exits(9);
        assert_eq!(shim.published(2).await, ["exit c1/e1 9", "exit c1 0"]);
    });
}

#[test]
fn an_exec_whose_exit_the_guest_does_not_tell_does_not_hold_up_that_of_its_container() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.execs("c1/e1").await;
        let begun = Instant::now();
        shim.guest.init("c1").exits(0);
        assert_eq!(soon(shim.waiting("c1")).await.unwrap(), 0);
        assert!(begun.elapsed() < Duration::from_secs(2));
        let mut exits = shim.published(2).await;
        exits.sort();
        assert_eq!(exits, ["exit c1 0", "exit c1/e1 137"]);
    });
}

#[test]
fn an_exec_that_was_not_started_ends_with_its_container() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.create_as(shim.request_in("c1", "c2")).await.unwrap();
        shim.start("c2").await.unwrap();
        shim.exec("c2/e1").await.unwrap();
        let waiting = shim.waiting("c2/e1");
        shim.guest.init("c2").exits(0);
        assert_eq!(waiting.await.unwrap().unwrap(), 255);
        assert!(shim.start("c2/e1").await.is_err());
        assert_eq!(shim.published(4).await, ["create c2", "start c2", "exec-added c2/e1", "exit c2 0"]);
        assert_eq!(shim.delete("c2/e1").await.unwrap(), 255);
    });
}
