//! containerd's calls to a shim on the fakes. Processes are named `container` or `container/exec`.

use std::{fs, time::Duration};

use containerd_shim_protos::{
    api::{
        CloseIORequest, CreateTaskRequest, CreateTaskResponse, DeleteRequest, ExecProcessRequest,
        KillRequest, PauseRequest, ResumeRequest, ShutdownRequest, StartRequest, StateRequest, Status,
        WaitRequest,
    },
    protobuf::{MessageField, well_known_types::any::Any},
    shim_async::Task,
    ttrpc::{Result, r#async::TtrpcContext},
};
use serde_json::json;
use tokio::{task::JoinHandle, time};

use crate::service::TaskService;

use super::stage::Shim;

fn names(process: &str) -> (String, String) {
    let (container, exec) = process.split_once('/').unwrap_or((process, ""));
    (container.into(), exec.into())
}

fn any(type_url: &str, value: Vec<u8>) -> MessageField<Any> {
    MessageField::some(Any { type_url: type_url.into(), value, ..Default::default() })
}

fn context() -> TtrpcContext {
    TtrpcContext::default()
}

impl Shim {
    /// A request to create `id` in a bundle of its own, made here.
    pub(crate) fn request(&self, id: &str) -> CreateTaskRequest {
        self.request_with(id, json!({}))
    }

    /// The same for a container of the pod whose sandbox is `sandbox`.
    pub(crate) fn request_in(&self, sandbox: &str, id: &str) -> CreateTaskRequest {
        let annotations = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": sandbox,
        });
        self.request_with(id, annotations)
    }

    /// The same with these annotations.
    pub(crate) fn request_with(&self, id: &str, annotations: serde_json::Value) -> CreateTaskRequest {
        let bundle = self.dir.path().join(id);
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"]},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]},
            "annotations": annotations,
        });
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        CreateTaskRequest {
            id: id.into(),
            bundle: bundle.to_str().unwrap().into(),
            options: self.options(),
            ..Default::default()
        }
    }

    /// Runtime options whose `config_path` is the test's configuration.
    pub(crate) fn options(&self) -> MessageField<Any> {
        let path = self.configuration().to_str().unwrap().to_owned();
        let length = u8::try_from(path.len()).unwrap();
        any("runtimeoptions.v1.Options", [&[0x12, length], path.as_bytes()].concat())
    }

    pub(crate) async fn create(&self, id: &str) -> Result<CreateTaskResponse> {
        self.service.create(&context(), self.request(id)).await
    }

    /// The same of another shim.
    pub(super) async fn create_with(
        &self,
        service: &TaskService,
        request: CreateTaskRequest,
    ) -> Result<CreateTaskResponse> {
        service.create(&context(), request).await
    }

    pub(crate) async fn create_as(&self, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        self.service.create(&context(), request).await
    }

    /// A Create that goes on beside the test; aborting it is what ttrpc does at a deadline.
    pub(crate) fn creating(&self, request: CreateTaskRequest) -> JoinHandle<Result<CreateTaskResponse>> {
        let service = self.service.clone();
        tokio::spawn(async move { service.create(&context(), request).await })
    }

    pub(crate) async fn start(&self, process: &str) -> Result<()> {
        self.starting(process).await.unwrap()
    }

    /// A Start that goes on beside the test.
    pub(crate) fn starting(&self, process: &str) -> JoinHandle<Result<()>> {
        let (id, exec_id) = names(process);
        let service = self.service.clone();
        let request = StartRequest { id, exec_id, ..Default::default() };
        tokio::spawn(async move { service.start(&context(), request).await.map(drop) })
    }

    /// Creates and starts `id`, and takes the events of both.
    pub(crate) async fn runs(&self, id: &str) {
        self.create(id).await.unwrap();
        self.start(id).await.unwrap();
        assert_eq!(self.published(2).await, [format!("create {id}"), format!("start {id}")]);
    }

    pub(crate) async fn exec(&self, process: &str) -> Result<()> {
        self.exec_as(process, |_| ()).await
    }

    /// Adds an exec after `change` to the request.
    pub(crate) async fn exec_as(
        &self,
        process: &str,
        change: impl FnOnce(&mut ExecProcessRequest),
    ) -> Result<()> {
        let (id, exec_id) = names(process);
        let spec = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["ls"]}).to_string();
        let spec = any("types.containerd.io/opencontainers/runtime-spec/1/Process", spec.into());
        let mut request = ExecProcessRequest { id, exec_id, spec, ..Default::default() };
        change(&mut request);
        self.service.exec(&context(), request).await.map(drop)
    }

    /// Adds and starts an exec, and takes the events of both.
    pub(crate) async fn execs(&self, process: &str) {
        self.exec(process).await.unwrap();
        self.start(process).await.unwrap();
        let expected = [format!("exec-added {process}"), format!("exec-started {process}")];
        assert_eq!(self.published(2).await, expected);
    }

    /// The status a process has, and its exit status.
    pub(crate) async fn state(&self, process: &str) -> Result<(Status, u32)> {
        let (id, exec_id) = names(process);
        let request = StateRequest { id, exec_id, ..Default::default() };
        let state = self.service.state(&context(), request).await?;
        Ok((state.status.unwrap(), state.exit_status))
    }

    pub(crate) async fn kill(&self, process: &str, signal: u32) -> Result<()> {
        self.killing(process, signal).await.unwrap()
    }

    /// A Kill that goes on beside the test.
    pub(crate) fn killing(&self, process: &str, signal: u32) -> JoinHandle<Result<()>> {
        let (id, exec_id) = names(process);
        let service = self.service.clone();
        let request = KillRequest { id, exec_id, signal, ..Default::default() };
        tokio::spawn(async move { service.kill(&context(), request).await.map(drop) })
    }

    pub(crate) async fn wait(&self, process: &str) -> Result<u32> {
        self.waiting(process).await.unwrap()
    }

    /// A Wait that goes on beside the test.
    pub(crate) fn waiting(&self, process: &str) -> JoinHandle<Result<u32>> {
        let (id, exec_id) = names(process);
        let service = self.service.clone();
        let request = WaitRequest { id, exec_id, ..Default::default() };
        tokio::spawn(async move { service.wait(&context(), request).await.map(|answer| answer.exit_status) })
    }

    /// Deletes a process; the answer is its exit status.
    pub(crate) async fn delete(&self, process: &str) -> Result<u32> {
        self.deleting(process).await.unwrap()
    }

    /// A Delete that goes on beside the test.
    pub(crate) fn deleting(&self, process: &str) -> JoinHandle<Result<u32>> {
        let (id, exec_id) = names(process);
        let service = self.service.clone();
        let request = DeleteRequest { id, exec_id, ..Default::default() };
        tokio::spawn(
            async move { service.delete(&context(), request).await.map(|answer| answer.exit_status) },
        )
    }

    pub(crate) async fn pause(&self, id: &str) -> Result<()> {
        self.pausing(id).await.unwrap()
    }

    /// A Pause that goes on beside the test.
    pub(crate) fn pausing(&self, id: &str) -> JoinHandle<Result<()>> {
        let service = self.service.clone();
        let request = PauseRequest { id: id.into(), ..Default::default() };
        tokio::spawn(async move { service.pause(&context(), request).await.map(drop) })
    }

    pub(crate) async fn resume(&self, id: &str) -> Result<()> {
        self.service.resume(&context(), ResumeRequest { id: id.into(), ..Default::default() }).await.map(drop)
    }

    pub(crate) async fn close_stdin(&self, process: &str) -> Result<()> {
        let (id, exec_id) = names(process);
        let request = CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
        self.service.close_io(&context(), request).await.map(drop)
    }

    /// Asks for the end; tells whether the shim is ending.
    pub(crate) async fn shut_down(&self, now: bool) -> bool {
        let request = ShutdownRequest { id: "c1".into(), now, ..Default::default() };
        self.service.shutdown(&context(), request).await.unwrap();
        time::timeout(Duration::ZERO, self.exit.wait()).await.is_ok()
    }
}
