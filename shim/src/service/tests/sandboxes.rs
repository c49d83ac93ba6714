//! Sandboxes that come up, that do not, and that have more than one container.

use std::{fs, path::Path, time::Duration};

use containerd_shim_protos::{
    api::{CreateTaskRequest, Status},
    ttrpc::Code,
    types::mount::Mount,
};
use serde_json::json;

use crate::fakes::{Boot, code, later, on_fakes, soon, words};

const KERNEL_PARAMS: &str = "io.katacontainers.config.hypervisor.kernel_params";

#[test]
fn no_call_waits_for_a_boot() {
    on_fakes(async |shim| {
        shim.machine.boots(Boot::Hangs);
        let creating = shim.creating(shim.request("c1"));
        shim.machine.has_begun(1).await;
        assert_eq!(code(shim.state("c1").await), Code::NOT_FOUND);
        assert_eq!(code(shim.kill("c1", 9).await), Code::NOT_FOUND);
        assert_eq!(code(shim.wait("c1").await), Code::NOT_FOUND);
        assert_eq!(code(shim.create("c1").await), Code::ALREADY_EXISTS);
        creating.abort();
        assert!(creating.await.unwrap_err().is_cancelled());
    });
}

#[test]
fn a_create_that_containerd_gives_up_does_not_keep_the_shim() {
    on_fakes(async |shim| {
        shim.machine.boots(Boot::Hangs);
        let creating = shim.creating(shim.request("c1"));
        shim.machine.has_begun(1).await;
        // As containerd has it: the end is asked for, once, before the connection of the create is closed.
        assert_eq!(code(shim.delete("c1").await), Code::NOT_FOUND);
        assert!(shim.shut_down(false).await);
        assert_eq!(code(soon(creating).await), Code::UNAVAILABLE);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn state_kill_and_wait_answer_while_the_create_of_another_container_hangs() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.never_answers("CreateContainer");
        let creating = shim.creating(shim.request_in("c1", "c2"));
        shim.guest.is_asked("CreateContainer c2").await;
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
        let waiting = shim.waiting("c1");
        shim.kill("c1", 15).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), 143);
        assert_eq!(shim.published(1).await, ["exit c1 143"]);
        // The sandbox goes with its own container, and the create with the sandbox.
        assert_eq!(code(creating.await.unwrap()), Code::UNAVAILABLE);
    });
}

#[test]
fn an_id_is_given_once() {
    on_fakes(async |shim| {
        shim.create("c1").await.unwrap();
        assert_eq!(code(shim.create("c1").await), Code::ALREADY_EXISTS);
        assert_eq!(shim.state("c1").await.unwrap().0, Status::CREATED);
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

#[test]
fn a_second_sandbox_is_refused() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        assert_eq!(code(shim.create("c2").await), Code::FAILED_PRECONDITION);
        assert_eq!(shim.machine.machines_on(), 1);
    });
}

#[test]
fn a_second_sandbox_is_refused_while_the_first_boots() {
    on_fakes(async |shim| {
        shim.machine.boots(Boot::Hangs);
        let creating = shim.creating(shim.request("c1"));
        shim.machine.has_begun(1).await;
        shim.machine.boots(Boot::Serves);
        assert_eq!(code(shim.create("c2").await), Code::FAILED_PRECONDITION);
        assert_eq!(code(shim.create_as(shim.request_in("c1", "c2")).await), Code::FAILED_PRECONDITION);
        creating.abort();
        assert!(creating.await.unwrap_err().is_cancelled());
        shim.runs("c2").await;
    });
}

#[test]
fn a_boot_that_fails_says_why_leaves_nothing_and_its_id_can_be_used_again() {
    on_fakes(async |shim| {
        shim.machine.boots(Boot::Dies);
        assert!(words(shim.create("c1").await).contains("last words"));
        assert!(shim.nothing_is_left());
        assert_eq!(code(shim.state("c1").await), Code::NOT_FOUND);
        shim.machine.boots(Boot::Serves);
        shim.runs("c1").await;
    });
}

#[test]
fn a_guest_that_never_says_it_serves_is_given_up_with_its_consoles_last_line() {
    on_fakes(async |shim| {
        shim.machine.boots(Boot::Mute);
        let creating = shim.creating(shim.request("c1"));
        shim.machine.has_begun(1).await;
        later(Duration::from_secs(46)).await;
        let answer = creating.await.unwrap();
        assert_eq!(code(answer.clone()), Code::DEADLINE_EXCEEDED);
        assert!(words(answer).contains("the console's last line"));
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_container_the_guest_refuses_takes_its_sandbox_along() {
    for method in ["CreateSandbox", "CreateContainer"] {
        on_fakes(async move |shim| {
            shim.guest.refuses(method, Code::INVALID_ARGUMENT, "no such capability: CAP_X");
            let answer = shim.create("c1").await;
            assert_eq!(code(answer.clone()), Code::INVALID_ARGUMENT);
            assert!(words(answer).contains("no such capability: CAP_X"));
            assert!(shim.nothing_is_left());
            shim.guest.obeys();
            shim.runs("c1").await;
        });
    }
}

#[test]
fn a_container_whose_files_are_not_there_takes_its_sandbox_along() {
    on_fakes(async |shim| {
        let bare = shim.request("c1");
        fs::remove_dir(shim.dir.path().join("c1/rootfs")).unwrap();
        assert!(words(shim.create_as(bare).await).contains("c1/rootfs"));
        assert!(shim.nothing_is_left());
        let deaf = CreateTaskRequest { stdin: "/nonexistent/fifo".into(), ..shim.request("c1") };
        assert!(words(shim.create_as(deaf).await).contains("/nonexistent/fifo"));
        assert!(shim.nothing_is_left());
        shim.runs("c1").await;
    });
}

#[test]
fn the_guest_is_shown_a_root_filesystem_for_as_long_as_there_is_its_container() {
    on_fakes(async |shim| {
        let shown = |id: &str| Path::new("/run/kata/tests/c1/share/shared").join(id).join("rootfs/who");
        let request = shim.request("c1");
        fs::write(shim.dir.path().join("c1/rootfs/who"), "the bundle's").unwrap();
        shim.create_as(request).await.unwrap();
        assert_eq!(fs::read_to_string(shown("c1")).unwrap(), "the bundle's");
        let snapshot = shim.dir.path().join("snapshot");
        fs::create_dir(&snapshot).unwrap();
        fs::write(snapshot.join("who"), "the snapshotter's").unwrap();
        let mount = Mount {
            type_: "bind".into(),
            source: snapshot.to_str().unwrap().into(),
            options: vec!["rbind".into(), "rw".into()],
            ..Default::default()
        };
        let request = CreateTaskRequest { rootfs: vec![mount], ..shim.request_in("c1", "c2") };
        shim.create_as(request).await.unwrap();
        assert_eq!(fs::read_to_string(shown("c2")).unwrap(), "the snapshotter's");
        shim.delete("c2").await.unwrap();
        assert!(!shown("c2").exists() && shown("c1").exists());
        shim.delete("c1").await.unwrap();
        assert!(shim.nothing_is_left());
        assert_eq!(fs::read_to_string(snapshot.join("who")).unwrap(), "the snapshotter's");
        shim.published(6).await;
    });
}

#[test]
fn a_create_that_is_dropped_at_its_deadline_leaves_nothing_and_its_id_can_be_used_again() {
    for method in ["Check", "CreateSandbox", "CreateContainer"] {
        on_fakes(async move |shim| {
            shim.guest.never_answers(method);
            let creating = shim.creating(shim.request("c1"));
            shim.guest.is_asked(method).await;
            creating.abort();
            assert!(creating.await.unwrap_err().is_cancelled());
            assert!(shim.nothing_is_left(), "{method}");
            shim.guest.obeys();
            shim.runs("c1").await;
        });
    }
    on_fakes(async |shim| {
        shim.machine.boots(Boot::Hangs);
        let creating = shim.creating(shim.request("c1"));
        shim.machine.has_begun(1).await;
        creating.abort();
        assert!(creating.await.unwrap_err().is_cancelled());
        assert!(shim.nothing_is_left());
        shim.machine.boots(Boot::Serves);
        shim.runs("c1").await;
    });
}

#[test]
fn a_container_of_a_pod_needs_its_sandbox() {
    on_fakes(async |shim| {
        let answer = shim.create_as(shim.request_in("c1", "c2")).await;
        assert_eq!(code(answer.clone()), Code::FAILED_PRECONDITION);
        assert!(words(answer).contains("sandbox c1 does not run"));
    });
}

#[test]
fn a_container_of_a_pod_whose_sandbox_has_ended_is_refused_and_leaves_nothing() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.machine.dies().await;
        assert_eq!(shim.published(1).await, ["exit c1 137"]);
        shim.service.stop().await;
        assert_eq!(code(shim.create_as(shim.request_in("c1", "c2")).await), Code::UNAVAILABLE);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_container_of_a_pod_comes_and_goes_without_the_sandbox() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.create_as(shim.request_in("c1", "c2")).await.unwrap();
        shim.start("c2").await.unwrap();
        shim.guest.init("c2").exits(1);
        assert_eq!(shim.wait("c2").await.unwrap(), 1);
        assert_eq!(shim.delete("c2").await.unwrap(), 1);
        assert_eq!(shim.published(4).await, ["create c2", "start c2", "exit c2 1", "delete c2 1"]);
        shim.guest.is_asked("RemoveContainer c2").await;
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
        shim.create_as(shim.request_in("c1", "c2")).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c2"]);
        shim.delete("c2").await.unwrap();
        assert_eq!(shim.published(2).await, ["exit c2 137", "delete c2 137"]);
    });
}

#[test]
fn a_guest_that_does_not_say_farewell_is_ended_all_the_same() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.never_answers("DestroySandbox");
        shim.guest.init("c1").exits(0);
        shim.guest.is_asked("DestroySandbox").await;
        // The exit is not held up by it.
        assert_eq!(shim.wait("c1").await.unwrap(), 0);
        assert_eq!(shim.published(1).await, ["exit c1 0"]);
        later(Duration::from_secs(21)).await;
        assert_eq!(shim.delete("c1").await.unwrap(), 0);
        assert_eq!(shim.published(1).await, ["delete c1 0"]);
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_sandbox_whose_annotation_the_operator_does_not_list_is_refused_by_name() {
    on_fakes(async |shim| {
        let request = shim.request_with("c1", json!({ KERNEL_PARAMS: "quiet" }));
        let answer = shim.create_as(request).await;
        assert_eq!(code(answer.clone()), Code::INVALID_ARGUMENT);
        let words = words(answer);
        assert!(words.contains(&format!("annotation {KERNEL_PARAMS}: not enabled")), "{words}");
    });
}

#[test]
fn what_the_operator_lists_is_laid_over_the_configuration_of_a_sandbox() {
    on_fakes(async |shim| {
        shim.configure("kernel_params = 'panic=1'\nenable_annotations = ['kernel_params']");
        shim.create_as(shim.request_with("c1", json!({ KERNEL_PARAMS: "quiet" }))).await.unwrap();
        assert_eq!(shim.machine.kernel_params(), ["panic=1", "quiet"]);
        assert_eq!(shim.published(1).await, ["create c1"]);
    });
}

#[test]
fn annotations_of_a_container_that_joins_a_sandbox_are_no_longer_asked_for() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let joins = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "c1",
            KERNEL_PARAMS: "quiet",
        });
        shim.create_as(shim.request_with("c2", joins)).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c2"]);
    });
}

#[test]
fn a_hostname_of_any_letters_is_cut_between_two_of_them() {
    on_fakes(async |shim| {
        let request = shim.request("c1");
        let file = std::path::Path::new(&request.bundle).join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        spec["hostname"] = format!("a{}", "é".repeat(40)).into();
        std::fs::write(&file, spec.to_string()).unwrap();
        shim.create_as(request).await.unwrap();
        shim.start("c1").await.unwrap();
        shim.guest.init("c1").exits(0);
        assert_eq!(shim.published(3).await, ["create c1", "start c1", "exit c1 0"]);
    });
}
