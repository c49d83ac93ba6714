//! The Sandbox API on the fakes, by itself and with the Task API beside it.

use std::{fs, time::Duration};

use containerd_shim_protos::{
    api::Status,
    protobuf::well_known_types::any::Any,
    sandbox_api::{SandboxStatusRequest, StopSandboxRequest},
    ttrpc::{Code, Result, r#async::TtrpcContext},
};
use protobuf::Message;
use slog::{Discard, Logger, o};
use tokio::task::JoinHandle;

use super::{wire::pod::PodSandboxConfig, *};
use crate::fakes::{Boot, Pod as Network, Shim, code, later, on_fakes, soon, words};

const POD: &str = "p1";

/// containerd's calls about sandboxes.
struct Api<'a> {
    shim: &'a Shim,
    service: Arc<SandboxService>,
}

fn context() -> TtrpcContext {
    TtrpcContext::default()
}

/// Has `test` call a shim of its own.
fn on_sandboxes(test: impl AsyncFnOnce(Api<'_>) + Send + 'static) {
    on_fakes(async |shim| {
        let log = Logger::root(Discard, o!());
        let service = SandboxService::new(shim.service.clone(), Connections::default(), log);
        test(Api { shim, service: Arc::new(service) }).await;
    });
}

impl Api<'_> {
    /// A request for a pod of that configuration, with a bundle as `start` leaves it.
    fn request(&self, config: &PodSandboxConfig) -> CreateSandboxRequest {
        let bundle = self.shim.dir.path().join(POD);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join(OPTIONS_FILE), self.shim.options().write_to_bytes().unwrap()).unwrap();
        let options = Any {
            type_url: "runtime.v1.PodSandboxConfig".into(),
            value: config.write_to_bytes().unwrap(),
            ..Default::default()
        };
        CreateSandboxRequest {
            sandbox_id: POD.into(),
            bundle_path: bundle.to_str().unwrap().into(),
            options: MessageField::some(options),
            ..Default::default()
        }
    }

    async fn create(&self, request: CreateSandboxRequest) -> Result<CreateSandboxResponse> {
        self.service.create_sandbox(&context(), request).await
    }

    async fn create_plain(&self) -> Result<CreateSandboxResponse> {
        self.create(self.request(&PodSandboxConfig::default())).await
    }

    fn starting(&self) -> JoinHandle<Result<StartSandboxResponse>> {
        let service = self.service.clone();
        let request = StartSandboxRequest { sandbox_id: POD.into(), ..Default::default() };
        tokio::spawn(async move { service.start_sandbox(&context(), request).await })
    }

    async fn start(&self) -> Result<StartSandboxResponse> {
        self.starting().await.unwrap()
    }

    async fn comes_up(&self) {
        self.create_plain().await.unwrap();
        self.start().await.unwrap();
    }

    fn waiting(&self) -> JoinHandle<Result<WaitSandboxResponse>> {
        let service = self.service.clone();
        let request = WaitSandboxRequest { sandbox_id: POD.into(), ..Default::default() };
        tokio::spawn(async move { service.wait_sandbox(&context(), request).await })
    }

    fn stopping(&self, timeout_secs: u32) -> JoinHandle<Result<StopSandboxResponse>> {
        let service = self.service.clone();
        let request = StopSandboxRequest { sandbox_id: POD.into(), timeout_secs, ..Default::default() };
        tokio::spawn(async move { service.stop_sandbox(&context(), request).await })
    }

    async fn status(&self) -> Result<SandboxStatusResponse> {
        let request = SandboxStatusRequest { sandbox_id: POD.into(), verbose: true, ..Default::default() };
        self.service.sandbox_status(&context(), request).await
    }

    fn pinging(&self) -> JoinHandle<Result<PingResponse>> {
        let service = self.service.clone();
        let request = PingRequest { sandbox_id: POD.into(), ..Default::default() };
        tokio::spawn(async move { service.ping_sandbox(&context(), request).await })
    }

    async fn shut_down(&self) -> Result<ShutdownSandboxResponse> {
        let request = ShutdownSandboxRequest { sandbox_id: POD.into(), ..Default::default() };
        self.service.shutdown_sandbox(&context(), request).await
    }
}

#[test]
fn a_sandbox_is_made_started_stopped_and_shut_down() {
    on_sandboxes(async |api| {
        api.create_plain().await.unwrap();
        let made = api.status().await.unwrap();
        assert_eq!((made.state.as_str(), made.pid), (NOT_READY, 0));
        assert_eq!(api.shim.machine.machines_on(), 0);
        let started = api.start().await.unwrap();
        let up = api.status().await.unwrap();
        assert_eq!((up.state.as_str(), up.pid, up.created_at), (READY, started.pid, started.created_at));
        assert!(started.pid > 0 && up.exited_at.is_none());
        api.pinging().await.unwrap().unwrap();
        let waiting = api.waiting();
        api.stopping(0).await.unwrap().unwrap();
        let exit = waiting.await.unwrap().unwrap();
        assert_eq!(exit.exit_status, 0);
        let ended = api.status().await.unwrap();
        assert_eq!((ended.state.as_str(), ended.pid, ended.exited_at), (NOT_READY, 0, exit.exited_at));
        assert!(api.shim.nothing_is_left());
        api.stopping(0).await.unwrap().unwrap();
        api.shut_down().await.unwrap();
        api.shim.exit.wait().await;
    });
}

#[test]
fn calls_at_a_wrong_time_are_refused_and_change_nothing() {
    on_sandboxes(async |api| {
        assert_eq!(code(api.status().await), Code::NOT_FOUND);
        assert_eq!(code(api.start().await), Code::NOT_FOUND);
        assert_eq!(code(api.waiting().await.unwrap()), Code::NOT_FOUND);
        assert_eq!(code(api.stopping(0).await.unwrap()), Code::NOT_FOUND);
        api.create_plain().await.unwrap();
        assert_eq!(code(api.create_plain().await), Code::ALREADY_EXISTS);
        assert_eq!(code(api.waiting().await.unwrap()), Code::FAILED_PRECONDITION);
        assert!(words(api.pinging().await.unwrap()).contains("StartSandbox comes first"));
        let early = api.shim.create_as(api.shim.request_in(POD, "c1")).await;
        assert_eq!(code(early), Code::FAILED_PRECONDITION);
        api.stopping(0).await.unwrap().unwrap();
        api.start().await.unwrap();
        assert_eq!(code(api.start().await), Code::FAILED_PRECONDITION);
        assert_eq!(code(api.create_plain().await), Code::ALREADY_EXISTS);
        assert_eq!(api.shim.machine.machines_on(), 1);
        let other = ShutdownSandboxRequest { sandbox_id: "p2".into(), ..Default::default() };
        assert_eq!(code(api.service.shutdown_sandbox(&context(), other).await), Code::NOT_FOUND);
        assert_eq!(api.status().await.unwrap().state, READY);
    });
}

#[test]
fn what_a_pod_may_not_have_is_refused_before_there_is_a_machine() {
    on_sandboxes(async |api| {
        let annotation = "io.katacontainers.config.hypervisor.default_vcpus";
        let mut config = PodSandboxConfig::default();
        config.annotations.insert(annotation.into(), "3".into());
        let refused = words(api.create(api.request(&config)).await);
        assert!(refused.contains(annotation) && refused.contains("enable_annotations"), "{refused}");
        let mut config = PodSandboxConfig::default();
        let linux = config.linux.mut_or_insert_default();
        linux.security_context.mut_or_insert_default().namespace_options.mut_or_insert_default().network = 2;
        assert!(words(api.create(api.request(&config)).await).contains("hostNetwork"));
        let unknown = MessageField::some(Any { type_url: "x.Unknown".into(), ..Default::default() });
        let request = api.request(&PodSandboxConfig::default());
        let answer = api.create(CreateSandboxRequest { options: unknown, ..request }).await;
        assert!(words(answer).contains("x.Unknown"));
        let request = api.request(&PodSandboxConfig::default());
        let answer = api.create(CreateSandboxRequest { sandbox_id: "../p".into(), ..request }).await;
        assert_eq!(code(answer), Code::INVALID_ARGUMENT);
        // As containerd has it then.
        api.shut_down().await.unwrap();
        api.shim.exit.wait().await;
    });
}

#[test]
fn a_pods_annotations_and_resources_make_its_machine() {
    on_sandboxes(async |api| {
        api.shim.configure("enable_annotations = [\"kernel_params\"]");
        let mut config = PodSandboxConfig::default();
        config.annotations.insert("io.katacontainers.config.hypervisor.kernel_params".into(), "a=b".into());
        // What only containerd says, a pod does not.
        config.annotations.insert("io.kubernetes.cri.sandbox-memory".into(), "many".into());
        let text = fs::read_to_string(api.shim.dir.path().join("configuration.toml")).unwrap();
        let text = format!("{text}[runtime]\nstatic_sandbox_resource_mgmt = true\n");
        fs::write(api.shim.dir.path().join("configuration.toml"), text).unwrap();
        let resources = config.linux.mut_or_insert_default().resources.mut_or_insert_default();
        resources.memory_limit_in_bytes = 128 << 20;
        api.create(api.request(&config)).await.unwrap();
        api.start().await.unwrap();
        assert!(api.shim.machine.kernel_params().contains(&"a=b".to_owned()));
        assert_eq!(api.shim.machine.sizes()[1], "384 MiB");
    });
}

#[test]
fn a_pods_network_is_joined_before_its_first_container_and_given_back() {
    on_sandboxes(async |api| {
        let network = Network::with_veth();
        let before = network.state();
        let request = api.request(&PodSandboxConfig::default());
        let netns_path = network.path.to_str().unwrap().into();
        api.create(CreateSandboxRequest { netns_path, ..request }).await.unwrap();
        assert_eq!(network.state(), before);
        api.start().await.unwrap();
        api.shim.guest.is_asked("UpdateInterface").await;
        assert_ne!(network.state(), before);
        api.stopping(0).await.unwrap().unwrap();
        assert_eq!(network.state(), before);
    });
}

#[test]
fn containers_come_and_go_and_the_sandbox_stays() {
    on_sandboxes(async |api| {
        let mut config = PodSandboxConfig { hostname: "seven".into(), ..Default::default() };
        config.dns_config.mut_or_insert_default().servers.push("192.0.2.53".into());
        api.create(api.request(&config)).await.unwrap();
        api.start().await.unwrap();
        let copies = api.shim.guest.asked(&["CopyFile"]).len();
        assert_eq!(copies, 3, "hostname, hosts and resolv.conf");
        for id in ["c1", "c2"] {
            api.shim.create_as(api.shim.request_in(POD, id)).await.unwrap();
            api.shim.start(id).await.unwrap();
            let metrics = SandboxMetricsRequest { sandbox_id: POD.into(), ..Default::default() };
            assert!(api.service.sandbox_metrics(&context(), metrics).await.unwrap().metrics.data.is_some());
            api.shim.kill(id, 9).await.unwrap();
            assert_eq!(api.shim.wait(id).await.unwrap(), 137);
            api.shim.delete(id).await.unwrap();
            let events = api.shim.published(4).await;
            assert_eq!(
                events,
                ["create", "start", "exit", "delete"].map(|verb| match verb {
                    "exit" | "delete" => format!("{verb} {id} 137"),
                    _ => format!("{verb} {id}"),
                })
            );
            assert!(!api.shim.shut_down(false).await, "its containers are not all that there is");
        }
        assert_eq!(api.status().await.unwrap().state, READY);
        // One that says nothing of a pod has been put into this one by containerd.
        api.shim.create("c3").await.unwrap();
        assert_eq!(api.shim.state("c3").await.unwrap().0, Status::CREATED);
        assert_eq!(api.shim.published(1).await, ["create c3"]);
        api.shut_down().await.unwrap();
        assert_eq!(api.shim.published(1).await, ["exit c3 255"]);
        assert!(api.shim.nothing_is_left());
    });
}

#[test]
fn a_machine_that_dies_ends_the_wait_and_is_told_as_dead() {
    on_sandboxes(async |api| {
        api.comes_up().await;
        let waiting = api.waiting();
        api.shim.machine.dies().await;
        let exit = waiting.await.unwrap().unwrap();
        assert_eq!((exit.exit_status, exit.exited_at.is_some()), (137, true));
        let refused = api.pinging().await.unwrap();
        assert_eq!(code(refused), Code::UNAVAILABLE);
        let status = api.status().await.unwrap();
        assert_eq!(status.state, NOT_READY);
        assert!(status.info["virtualMachine"].contains("gone"), "{:?}", status.info);
        assert_eq!(code(api.start().await), Code::FAILED_PRECONDITION);
    });
}

#[test]
fn a_guest_that_does_not_answer_is_told_within_the_ping_s_time_and_stopped_by_the_deadline() {
    on_sandboxes(async |api| {
        api.comes_up().await;
        api.shim.guest.never_answers("Check");
        let pinging = api.pinging();
        api.shim.guest.is_asked("Check").await;
        assert_eq!(code(soon(pinging).await), Code::DEADLINE_EXCEEDED);
        api.shim.guest.never_answers("DestroySandbox");
        let stopping = api.stopping(1);
        api.shim.guest.is_asked("DestroySandbox").await;
        later(Duration::from_secs(2)).await;
        let late = stopping.await.unwrap();
        assert!(words(late).contains("it goes on ending"));
        soon(api.waiting()).await.unwrap();
        assert!(api.shim.nothing_is_left());
    });
}

#[test]
fn a_start_that_fails_or_is_given_up_leaves_nothing_and_may_be_tried_again() {
    on_sandboxes(async |api| {
        api.create_plain().await.unwrap();
        api.shim.machine.boots(Boot::Dies);
        assert!(words(api.start().await).contains("last words"));
        assert!(api.shim.nothing_is_left());
        api.shim.machine.boots(Boot::Hangs);
        let starting = api.starting();
        api.shim.machine.has_begun(2).await;
        assert_eq!(code(api.start().await), Code::FAILED_PRECONDITION);
        starting.abort();
        assert!(starting.await.unwrap_err().is_cancelled());
        assert!(api.shim.nothing_is_left());
        api.shim.machine.boots(Boot::Serves);
        api.start().await.unwrap();
        assert_eq!(api.status().await.unwrap().state, READY);
    });
}

#[test]
fn a_shutdown_ends_a_start_that_hangs() {
    on_sandboxes(async |api| {
        api.create_plain().await.unwrap();
        api.shim.machine.boots(Boot::Hangs);
        let starting = api.starting();
        api.shim.machine.has_begun(1).await;
        assert!(words(api.stopping(0).await.unwrap()).contains("is being started"));
        api.shut_down().await.unwrap();
        assert_eq!(code(soon(starting).await), Code::UNAVAILABLE);
        assert!(api.shim.nothing_is_left());
    });
}

#[test]
fn a_shutdown_goes_on_when_its_caller_does_not_wait() {
    on_sandboxes(async |api| {
        api.comes_up().await;
        let late = api.shim.guest.delays("DestroySandbox");
        let service = api.service.clone();
        let request = ShutdownSandboxRequest { sandbox_id: POD.into(), ..Default::default() };
        let shutting = tokio::spawn(async move { service.shutdown_sandbox(&context(), request).await });
        api.shim.guest.is_asked("DestroySandbox").await;
        shutting.abort();
        assert!(shutting.await.unwrap_err().is_cancelled());
        drop(late);
        api.shim.exit.wait().await;
        assert!(api.shim.nothing_is_left());
    });
}

#[test]
fn the_sandbox_of_a_container_is_none_of_this_api() {
    on_sandboxes(async |api| {
        api.shim.runs("c1").await;
        assert_eq!(code(api.create_plain().await), Code::FAILED_PRECONDITION);
        assert_eq!(code(api.status().await), Code::NOT_FOUND);
        assert_eq!(code(api.shut_down().await), Code::NOT_FOUND);
        assert_eq!(api.shim.machine.machines_on(), 1);
    });
}

#[test]
fn containers_are_made_for_the_hosts_architecture() {
    let platform = platform();
    assert_eq!(platform.os, "linux");
    assert!(["amd64", "arm64", "s390x", "ppc64le"].contains(&platform.architecture.as_str()));
}
