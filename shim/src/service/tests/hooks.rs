//! A container and the hooks of its configuration.

use std::fs;

use containerd_shim_protos::{
    api::{CreateTaskRequest, DeleteRequest, KillRequest, StartRequest},
    shim_async::Task,
    ttrpc::{Code, r#async::TtrpcContext},
};

use crate::fakes::{Shim, code, on_fakes};

/// A request to create `id`, with hooks that write down when they run, of which the first is `first`.
fn request(shim: &Shim, id: &str, first: &str) -> CreateTaskRequest {
    let request = shim.request(id);
    let file = shim.dir.path().join(id).join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let hook = |script: &str| serde_json::json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    spec["hooks"] = serde_json::json!({
        "prestart": hook("echo prestart >> order"),
        "createRuntime": hook(&format!("echo createRuntime >> order; {first}")),
        "poststart": hook("echo poststart >> order; exit 1"),
        "poststop": hook("echo poststop >> order"),
    });
    fs::write(&file, spec.to_string()).unwrap();
    request
}

fn order(shim: &Shim, id: &str) -> Vec<String> {
    let text = fs::read_to_string(shim.dir.path().join(id).join("order")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn hooks_run_as_a_container_goes_through_its_life() {
    on_fakes(async |shim| {
        let context = TtrpcContext::default();
        shim.service.create(&context, request(shim, "c1", "true")).await.unwrap();
        assert_eq!(order(shim, "c1"), ["prestart", "createRuntime"]);
        let start = StartRequest { id: "c1".into(), ..Default::default() };
        shim.service.start(&context, start).await.expect("a poststart hook that fails is only logged");
        assert_eq!(order(shim, "c1")[2..], ["poststart"]);
        let kill = KillRequest { id: "c1".into(), signal: 9, ..Default::default() };
        shim.service.kill(&context, kill).await.unwrap();
        assert_eq!(shim.published(3).await, ["create c1", "start c1", "exit c1 137"]);
        let delete = DeleteRequest { id: "c1".into(), ..Default::default() };
        shim.service.delete(&context, delete).await.unwrap();
        assert_eq!(shim.published(1).await, ["delete c1 137"]);
        assert_eq!(order(shim, "c1")[3..], ["poststop"]);
        assert!(!shim.dir.path().join("c1/hooks-due").exists());
    });
}

#[test]
fn a_hook_that_fails_refuses_the_container_and_what_was_taken_is_freed() {
    on_fakes(async |shim| {
        let context = TtrpcContext::default();
        let refused = shim.service.create(&context, request(shim, "c1", "exit 1")).await;
        let said = refused.as_ref().err().map(ToString::to_string).unwrap_or_default();
        assert!(said.contains("hook /bin/sh"), "{said}");
        assert_eq!(code(refused), Code::UNKNOWN);
        while order(shim, "c1") != ["prestart", "createRuntime", "poststop"] {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(shim.nothing_is_left());
    });
}

#[test]
fn a_hook_that_only_frees_something_runs_too() {
    on_fakes(async |shim| {
        let context = TtrpcContext::default();
        let request = request(shim, "c1", "true");
        let file = shim.dir.path().join("c1/config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let hooks = spec["hooks"].as_object_mut().unwrap();
        hooks.retain(|point, _| point == "poststop");
        fs::write(&file, spec.to_string()).unwrap();
        shim.service.create(&context, request).await.unwrap();
        assert_eq!(order(shim, "c1"), [""; 0]);
        let delete = DeleteRequest { id: "c1".into(), ..Default::default() };
        shim.service.delete(&context, delete).await.unwrap();
        assert_eq!(order(shim, "c1"), ["poststop"]);
        assert_eq!(shim.published(3).await, ["create c1", "exit c1 137", "delete c1 137"]);
    });
}
