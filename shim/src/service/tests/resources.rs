//! Machines that are as big as their containers may use.

use std::{fs, path::Path, thread::available_parallelism, time::Duration};

use containerd_shim_protos::{
    api::{CreateTaskRequest, UpdateTaskRequest},
    protobuf::{MessageField, well_known_types::any::Any},
    shim_async::Task,
    ttrpc::{self, Code, r#async::TtrpcContext},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::fakes::{Shim, code, later, on_fakes, settled, words};

const STATIC: &str = "[runtime]\nstatic_sandbox_resource_mgmt = true";
/// Calls to the guest's agent that a change of the machine's size makes.
const OF_SIZE: [&str; 2] = ["OnlineCPUMem", "GetGuestDetails"];

/// A little longer than a machine keeps what nobody needs.
const GRACE: Duration = Duration::from_millis(3100);

/// Has what is under way go on, and that time pass.
async fn a_while() {
    settled().await;
    later(GRACE).await;
}

fn memory(mib: u64) -> Value {
    json!({"memory": {"limit": mib << 20}})
}

fn with(request: CreateTaskRequest, resources: Value) -> CreateTaskRequest {
    let file = Path::new(&request.bundle).join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    spec["linux"]["resources"] = resources;
    fs::write(&file, spec.to_string()).unwrap();
    request
}

/// What stands for a pod of these annotations, with limits that are nobody's.
async fn pod_with(shim: &Shim, mut annotations: Value) {
    annotations["io.kubernetes.cri.container-type"] = "sandbox".into();
    shim.create_as(with(shim.request_with("pod", annotations), memory(64))).await.unwrap();
    assert_eq!(shim.published(1).await, ["create pod"]);
}

pub(super) async fn pod(shim: &Shim) {
    pod_with(shim, json!({})).await;
}

pub(super) async fn create(shim: &Shim, id: &str, resources: Value) {
    shim.create_as(with(shim.request_in("pod", id), resources)).await.unwrap();
    assert_eq!(shim.published(1).await, [format!("create {id}")]);
}

pub(super) async fn delete(shim: &Shim, id: &str) {
    shim.delete(id).await.unwrap();
    assert_eq!(shim.published(2).await, [format!("exit {id} 137"), format!("delete {id} 137")]);
}

pub(super) async fn update(shim: &Shim, id: &str, resources: Value) -> ttrpc::Result<()> {
    updating(shim, id, resources).await.unwrap()
}

/// An Update that goes on beside the test; aborting it is what ttrpc does at a deadline.
fn updating(shim: &Shim, id: &str, resources: Value) -> JoinHandle<ttrpc::Result<()>> {
    let any = Any { value: resources.to_string().into(), ..Default::default() };
    let request =
        UpdateTaskRequest { id: id.into(), resources: MessageField::some(any), ..Default::default() };
    let service = shim.service.clone();
    tokio::spawn(async move { service.update(&TtrpcContext::default(), request).await.map(drop) })
}

/// An Update of the container `c1` of a new pod that asks for more memory than there can be, while that is on its way.
async fn absurd(shim: &Shim) -> JoinHandle<ttrpc::Result<()>> {
    shim.configure("default_maxmemory = 8192");
    pod(shim).await;
    create(shim, "c1", memory(128)).await;
    shim.machine.is_slow();
    let absurd = updating(shim, "c1", memory(1 << 20));
    assert_eq!(shim.machine.has_had(4).await[2..], ["384 MiB", "8192 MiB"], "no more than there can be");
    absurd
}

#[test]
fn c14_the_machine_of_a_pod_grows_with_its_containers_and_shrinks() {
    on_fakes(async |shim| {
        pod(shim).await;
        assert_eq!(shim.machine.sizes(), ["1", "256 MiB"]);
        create(shim, "c1", memory(128)).await;
        create(shim, "c2", memory(256)).await;
        assert_eq!(shim.machine.sizes()[2..], ["384 MiB", "640 MiB"]);
        delete(shim, "c1").await;
        create(shim, "c3", memory(64)).await;
        assert_eq!(shim.machine.sizes().len(), 4, "it has what the one before had");
        a_while().await;
        assert_eq!(shim.machine.has_had(5).await[4..], ["576 MiB"]);
        delete(shim, "c2").await;
        delete(shim, "c3").await;
        a_while().await;
        assert_eq!(shim.machine.has_had(6).await[5..], ["256 MiB"]);
        let asked = shim.guest.asked(&["GetGuestDetails", "OnlineCPUMem", "CreateContainer"]);
        let container = ["OnlineCPUMem", "CreateContainer"];
        let pod = ["CreateContainer", "GetGuestDetails"];
        assert_eq!(asked, [&pod[..], &container, &container, &["CreateContainer"]].concat());
    });
}

#[test]
fn c14_processors_are_as_many_as_containers_may_use_and_the_host_has() {
    on_fakes(async |shim| {
        let host = available_parallelism().unwrap().get();
        pod(shim).await;
        create(shim, "c1", json!({"cpu": {"quota": 50_000, "period": 100_000}})).await;
        create(shim, "c2", json!({"cpu": {"quota": 1_000_000, "period": 100_000}})).await;
        let mut sizes = vec!["1".to_owned(), "256 MiB".to_owned()];
        sizes.extend((host >= 2).then(|| "2".to_owned()));
        sizes.extend((host >= 3).then(|| host.min(12).to_string()));
        assert_eq!(shim.machine.sizes(), sizes);
    });
}

#[test]
fn containers_without_limits_cost_no_change_of_the_machine() {
    on_fakes(async |shim| {
        pod(shim).await;
        create(shim, "c1", json!({"cpu": {"shares": 1024}, "memory": {"limit": -1}})).await;
        update(shim, "c1", json!({"cpu": {"shares": 2}})).await.unwrap();
        delete(shim, "c1").await;
        a_while().await;
        settled().await;
        assert_eq!(shim.machine.sizes(), ["1", "256 MiB"]);
        assert!(shim.guest.asked(&OF_SIZE).is_empty());
    });
}

#[test]
fn containers_that_are_made_at_once_all_count() {
    on_fakes(async |shim| {
        pod(shim).await;
        let late = shim.guest.delays("OnlineCPUMem");
        let ids = ["c1", "c2", "c3", "c4"];
        let making = ids.map(|id| shim.creating(with(shim.request_in("pod", id), memory(128))));
        shim.guest.is_asked("OnlineCPUMem").await;
        settled().await;
        assert!(making.iter().all(|making| !making.is_finished()), "the first change is not through");
        drop(late);
        for making in making {
            making.await.unwrap().unwrap();
        }
        assert_eq!(shim.machine.sizes().last().unwrap(), "768 MiB");
        let mut created = shim.published(4).await;
        created.sort();
        assert_eq!(created, ids.map(|id| format!("create {id}")));
    });
}

#[test]
fn memory_that_cannot_be_had_is_told_by_the_limit_and_counts_no_longer() {
    on_fakes(async |shim| {
        shim.configure("default_maxmemory = 8192");
        pod(shim).await;
        shim.machine.has_no_more_room();
        let answer = shim.create_as(with(shim.request_in("pod", "c1"), memory(300))).await;
        let words = words(answer);
        for word in ["container c1", "300 MiB", "default_maxmemory is 8192 MiB", "no free room"] {
            assert!(words.contains(word), "{words}");
        }
        create(shim, "c2", json!({})).await;
        assert!(shim.guest.asked(&["CreateContainer"]).len() == 2);
    });
}

#[test]
fn containers_may_use_more_than_the_most_memory_there_can_be() {
    on_fakes(async |shim| {
        shim.configure("default_maxmemory = 512");
        pod(shim).await;
        create(shim, "c1", memory(8192)).await;
        create(shim, "c2", memory(128)).await;
        assert_eq!(shim.machine.sizes()[2..], ["512 MiB"]);
    });
}

#[test]
fn a_create_that_is_given_up_while_its_machine_grows_gives_back_what_it_took() {
    on_fakes(async |shim| {
        pod(shim).await;
        shim.guest.never_answers("OnlineCPUMem");
        let creating = shim.creating(with(shim.request_in("pod", "c1"), memory(128)));
        shim.guest.is_asked("OnlineCPUMem").await;
        shim.guest.obeys();
        creating.abort();
        assert!(creating.await.unwrap_err().is_cancelled());
        a_while().await;
        assert_eq!(shim.machine.has_had(5).await[2..], ["384 MiB", "1", "256 MiB"]);
    });
}

#[test]
fn c14_limits_that_are_raised_come_with_memory_and_go_back_with_it() {
    on_fakes(async |shim| {
        pod(shim).await;
        create(shim, "c1", memory(128)).await;
        update(shim, "c1", memory(256)).await.unwrap();
        assert_eq!(shim.machine.sizes()[2..], ["384 MiB", "512 MiB"]);
        let asked = shim.guest.asked(&["OnlineCPUMem", "UpdateContainer"]);
        assert_eq!(asked, ["OnlineCPUMem", "OnlineCPUMem", "UpdateContainer"], "memory comes first");
        update(shim, "c1", memory(128)).await.unwrap();
        a_while().await;
        assert_eq!(shim.machine.has_had(5).await[4..], ["384 MiB"]);
        shim.guest.refuses("UpdateContainer", Code::INTERNAL, "busy");
        assert_eq!(words(update(shim, "c1", memory(512)).await), "busy");
        a_while().await;
        assert_eq!(shim.machine.has_had(7).await[5..], ["768 MiB", "384 MiB"]);
    });
}

#[test]
fn memory_stops_to_come_when_less_is_wished_for() {
    on_fakes(async |shim| {
        let absurd = absurd(shim).await;
        update(shim, "c1", memory(256)).await.unwrap();
        absurd.await.unwrap().unwrap();
        assert_eq!(shim.machine.sizes()[4..], ["1", "512 MiB"]);
        assert_eq!(shim.guest.asked(&["UpdateContainer"]).len(), 2);
        // Of another container, which goes.
        let absurd = shim.creating(with(shim.request_in("pod", "c2"), memory(1 << 20)));
        assert_eq!(shim.machine.has_had(7).await[6..], ["8192 MiB"]);
        absurd.abort();
        create(shim, "c3", memory(64)).await;
        assert_eq!(shim.machine.sizes()[7..], ["1", "576 MiB"]);
    });
}

#[test]
fn limits_of_an_update_that_is_given_up_count_no_longer() {
    on_fakes(async |shim| {
        let absurd = absurd(shim).await;
        absurd.abort();
        assert!(absurd.await.unwrap_err().is_cancelled());
        a_while().await;
        assert_eq!(shim.machine.has_had(6).await[4..], ["1", "384 MiB"]);
        assert!(shim.guest.asked(&["UpdateContainer"]).is_empty());
    });
}

#[test]
fn an_update_adds_nothing_to_the_wish_of_one_before_it_that_is_given_up() {
    on_fakes(async |shim| {
        let absurd = absurd(shim).await;
        let next = updating(shim, "c1", json!({"cpu": {"cpus": "0"}}));
        a_while().await;
        absurd.abort();
        assert!(absurd.await.unwrap_err().is_cancelled());
        next.await.unwrap().unwrap();
        assert_eq!(shim.machine.sizes()[5..], ["384 MiB"]);
        assert_eq!(shim.guest.asked(&["UpdateContainer"]).len(), 1);
    });
}

#[test]
fn an_update_that_is_given_up_takes_nothing_from_the_one_before_it() {
    on_fakes(async |shim| {
        pod(shim).await;
        create(shim, "c1", memory(128)).await;
        let goes_on = shim.guest.delays("UpdateContainer");
        let first = updating(shim, "c1", memory(512));
        shim.guest.is_asked("UpdateContainer").await;
        let second = updating(shim, "c1", memory(256));
        a_while().await;
        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        drop(goes_on);
        first.await.unwrap().unwrap();
        a_while().await;
        assert_eq!(shim.machine.sizes()[3..], ["768 MiB"]);
    });
}

#[test]
fn a_set_of_cpus_that_is_none_changes_nothing() {
    on_fakes(async |shim| {
        pod(shim).await;
        let request = with(shim.request_in("pod", "c1"), json!({"cpu": {"cpus": "abc"}}));
        assert!(words(shim.create_as(request).await).contains("linux.resources.cpu.cpus: \"abc\""));
        create(shim, "c1", memory(128)).await;
        let both = json!({"cpu": {"cpus": "0-999999"}, "memory": {"limit": 512 << 20}});
        let answer = update(shim, "c1", both).await;
        assert_eq!(code(answer.clone()), Code::UNKNOWN);
        assert!(words(answer).contains("0-999999"));
        assert_eq!(shim.machine.sizes()[2..], ["384 MiB"]);
        assert!(shim.guest.asked(&["UpdateContainer"]).is_empty());
        update(shim, "c1", json!({"cpu": {"cpus": "0"}})).await.unwrap();
    });
}

#[test]
fn a_container_that_stands_alone_has_a_machine_of_its_size_from_the_start() {
    on_fakes(async |shim| {
        shim.create_as(with(shim.request("c1"), memory(100))).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        assert_eq!(shim.machine.sizes(), ["1", "384 MiB"]);
        assert!(shim.guest.asked(&OF_SIZE).is_empty());
        update(shim, "c1", memory(200)).await.unwrap();
        assert_eq!(shim.machine.sizes()[2..], ["456 MiB"]);
    });
}

#[test]
fn a_copy_of_a_template_grows_once_it_is_there() {
    on_fakes(async |shim| {
        let templates = shim.dir.path().join("templates");
        shim.configure(&format!("[factory]\nenable_template = true\ntemplate_path = {templates:?}"));
        shim.create_as(with(shim.request("c1"), memory(128))).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        assert_eq!(shim.machine.origins(), ["template", "copy"]);
        assert_eq!(shim.machine.sizes(), ["1", "256 MiB", "1", "256 MiB", "384 MiB"]);
    });
}

#[test]
fn e5_a_machine_of_static_size_is_that_of_its_pod_and_no_template() {
    on_fakes(async |shim| {
        let templates = shim.dir.path().join("templates");
        shim.configure(&format!(
            "[factory]\nenable_template = true\ntemplate_path = {templates:?}\n{STATIC}"
        ));
        pod_with(shim, json!({"io.kubernetes.cri.sandbox-memory": "402653184"})).await;
        create(shim, "c1", memory(128)).await;
        create(shim, "c2", memory(512)).await;
        update(shim, "c2", memory(1024)).await.unwrap();
        delete(shim, "c1").await;
        a_while().await;
        settled().await;
        assert_eq!(shim.machine.sizes(), ["1", "640 MiB"]);
        assert_eq!(shim.machine.origins(), ["boot"]);
        assert!(shim.guest.asked(&OF_SIZE).is_empty());
    });
}

#[test]
fn e5_a_pod_whose_size_is_no_number_is_refused_by_the_annotation() {
    on_fakes(async |shim| {
        shim.configure(STATIC);
        let kind = "io.kubernetes.cri.container-type";
        let request =
            shim.request_with("pod", json!({kind: "sandbox", "io.kubernetes.cri.sandbox-cpu-quota": "much"}));
        let answer = shim.create_as(request).await;
        assert_eq!(code(answer.clone()), Code::INVALID_ARGUMENT);
        assert!(words(answer).contains("io.kubernetes.cri.sandbox-cpu-quota"));
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_board_that_cannot_grow_has_what_is_known_at_its_start() {
    on_fakes(async |shim| {
        shim.configure("machine_type = 'microvm'");
        shim.create_as(with(shim.request("c1"), memory(128))).await.unwrap();
        assert_eq!(shim.published(1).await, ["create c1"]);
        update(shim, "c1", memory(512)).await.unwrap();
        assert_eq!(shim.machine.sizes(), ["1", "384 MiB"]);
        assert!(shim.guest.asked(&OF_SIZE).is_empty());
    });
}

#[test]
fn a_pod_on_a_board_that_cannot_grow_has_what_its_sandbox_is_told() {
    on_fakes(async |shim| {
        shim.configure("machine_type = 'microvm'");
        pod_with(shim, json!({"io.kubernetes.cri.sandbox-memory": "402653184"})).await;
        create(shim, "c1", memory(128)).await;
        create(shim, "c2", memory(512)).await;
        assert_eq!(shim.machine.sizes(), ["1", "640 MiB"]);
        assert!(shim.guest.asked(&OF_SIZE).is_empty());
    });
}

#[test]
fn processors_that_the_guest_does_not_use_are_no_error_and_tried_again() {
    if available_parallelism().unwrap().get() < 2 {
        return;
    }
    on_fakes(async |shim| {
        pod(shim).await;
        shim.guest.refuses("OnlineCPUMem", Code::DEADLINE_EXCEEDED, "late");
        create(shim, "c1", json!({"cpu": {"quota": 90_000}})).await;
        shim.guest.obeys();
        create(shim, "c2", json!({"cpu": {"quota": 1_000}})).await;
        create(shim, "c3", json!({"cpu": {"quota": 1_000}})).await;
        assert_eq!(shim.machine.sizes()[2..], ["2", "2"]);
    });
}

#[test]
fn a_sandbox_that_ends_waits_for_no_memory_that_goes() {
    on_fakes(async |shim| {
        pod(shim).await;
        create(shim, "c1", json!({"cpu": {"quota": 200_000}, "memory": {"limit": 128 << 20}})).await;
        shim.guest.never_answers("OnlineCPUMem");
        delete(shim, "c1").await;
        a_while().await;
        shim.guest.is_asked("OnlineCPUMem").await;
        tokio::time::timeout(Duration::from_secs(10), shim.delete("pod")).await.unwrap().unwrap();
        assert_eq!(shim.published(2).await, ["exit pod 137", "delete pod 137"]);
    });
}
