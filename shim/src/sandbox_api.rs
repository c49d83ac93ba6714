//! containerd's Sandbox API: a pod's machine as a thing of its own, which needs no pause container.
//!
//! ```text
//! CreateSandbox: asked for, checked --StartSandbox--> up --StopSandbox, or lost--> ended --ShutdownSandbox--> no shim
//! ```
//!
//! The sandbox is the one that the Task API knows; containers join it by their own Create.

mod pod;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::HashMap,
    future::Future,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use containerd_shim_protos::{
    protobuf::{Message, MessageField, well_known_types::any::Any},
    sandbox_api::{
        CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
        PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
        SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
        StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
        WaitSandboxResponse,
    },
    sandbox_async::Sandbox as SandboxApi,
    ttrpc::{self, r#async::TtrpcContext},
    types::platform::Platform,
};
use slog::{Logger, info};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    bootstrap::OPTIONS_FILE,
    error::{Error, Result},
    metrics::{self, Version},
    process::timestamp,
    sandbox::{Prepared, Sandbox},
    serve::Connections,
    service::{TaskService, answer, unpanicked},
};
use pod::Pod;

/// The states of a sandbox in the words of CRI (`PodSandboxState`), which is who reads them.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";
/// How long the guest may take to say that it is well.
const PING: Duration = Duration::from_secs(5);
/// How long a stop may take whose caller does not say: more than its steps are given together.
const STOP: Duration = Duration::from_secs(30);
/// How long the shim stays for a caller that has asked for its end: containerd closes its connection when it has the
/// answer, and takes an answer for none if the shim is the first to close.
const PARTING: Duration = Duration::from_secs(1);

/// The service of one shim.
pub(crate) struct SandboxService {
    tasks: Arc<TaskService>,
    connections: Connections,
    log: Logger,
}

impl SandboxService {
    pub(crate) fn new(tasks: Arc<TaskService>, connections: Connections, log: Logger) -> SandboxService {
        SandboxService { tasks, connections, log }
    }

    fn create(&self, request: CreateSandboxRequest) -> Result<()> {
        let pod = Pod::of(request)?;
        let options = runtime_options(&pod.bundle)?;
        self.tasks.sandbox().prepare(&pod.id, pod.bundle, pod.spec, pod.provisions, options.as_ref())
    }

    /// The sandbox of that name, which must have been started.
    fn started(&self, id: &str) -> Result<Arc<Sandbox>> {
        let (_, sandbox) = self.tasks.sandbox().find(id)?;
        sandbox.ok_or_else(|| {
            Error::FailedPrecondition(format!("sandbox {id} has not been started: StartSandbox comes first"))
        })
    }

    async fn ping(&self, id: &str) -> Result<()> {
        let sandbox = self.started(id)?;
        let well = timeout(PING, sandbox.ask(sandbox.agent().check())).await;
        well.unwrap_or_else(|_| {
            Err(Error::DeadlineExceeded(format!(
                "sandbox {id}: the guest did not answer within {} s: stop the pod if it does not recover",
                PING.as_secs()
            )))
        })
    }

    /// What has not been started, or has ended, need not be stopped. What is being started cannot be, but shut down.
    async fn stop(&self, request: &StopSandboxRequest) -> Result<()> {
        let (_, sandbox) = self.tasks.sandbox().find(&request.sandbox_id)?;
        let Some(sandbox) = sandbox else {
            if self.tasks.sandbox().is_being_made() {
                return Err(Error::FailedPrecondition(format!(
                    "sandbox {} is being started: stop it then, or shut it down now",
                    request.sandbox_id
                )));
            }
            return Ok(());
        };
        let limit = match request.timeout_secs {
            0 => STOP,
            seconds => Duration::from_secs(seconds.into()),
        };
        timeout(limit, sandbox.stop("StopSandbox")).await.map_err(|_| {
            Error::DeadlineExceeded(format!(
                "sandbox {} is not gone after {} s; it goes on ending: ask again, or shut it down",
                request.sandbox_id,
                limit.as_secs()
            ))
        })
    }

    /// Also what was never made: containerd asks for the end of a shim whose CreateSandbox was refused. Goes on when
    /// the caller does not wait.
    async fn shut_down(&self, id: &str) -> Result<()> {
        if self.tasks.sandbox().is_there() {
            self.tasks.sandbox().find(id)?;
        }
        info!(self.log, "shutdown of the sandbox asked for");
        let (tasks, connections) = (self.tasks.clone(), self.connections.clone());
        let (told, gone) = oneshot::channel();
        tokio::spawn(async move {
            tasks.sandbox().stop("ShutdownSandbox").await;
            // A caller that does not wait any more needs no time to take the answer.
            if told.send(()).is_ok() {
                connections.one_closes(PARTING).await;
            }
            tasks.end();
        });
        timeout(STOP, gone).await.map(drop).map_err(|_| {
            Error::DeadlineExceeded(format!(
                "sandbox {id} is not gone after {} s; its shim ends when it is",
                STOP.as_secs()
            ))
        })
    }

    /// What its containers use together.
    async fn metrics(&self, id: &str) -> Result<SandboxMetricsResponse> {
        self.started(id)?.is_up()?;
        let mut all = Vec::new();
        for container in self.tasks.containers() {
            // One that has ended, or does so meanwhile, uses nothing.
            all.extend(container.guest_stats().await.ok());
        }
        let data = metrics::render(&metrics::sum(&all), Version::of_host())?;
        let mut response = SandboxMetricsResponse::default();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = MessageField::some(timestamp(SystemTime::now()));
        metric.id = id.to_owned();
        metric.data = MessageField::some(data);
        Ok(response)
    }

    fn status(&self, request: SandboxStatusRequest) -> Result<SandboxStatusResponse> {
        let (prepared, sandbox) = self.tasks.sandbox().find(&request.sandbox_id)?;
        let up = sandbox.as_deref().filter(|sandbox| sandbox.is_up().is_ok());
        let exit = sandbox.as_deref().and_then(Sandbox::exit);
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: up.map(Sandbox::pid).unwrap_or_default(),
            state: if up.is_some() { READY } else { NOT_READY }.to_owned(),
            created_at: MessageField::some(timestamp(since(&prepared, sandbox.as_deref()))),
            exited_at: exit.map(|exit| exit.timestamp()).into(),
            info: if request.verbose { info_of(sandbox.as_deref()) } else { HashMap::new() },
            ..Default::default()
        })
    }
}

/// What `start` has left; containerd gives them to nobody else.
fn runtime_options(bundle: &Path) -> Result<Option<Any>> {
    let path = bundle.join(OPTIONS_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => Any::parse_from_bytes(&bytes)
            .map(Some)
            .map_err(|error| Error::Failed(format!("{}: {error}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path.display())(error)),
    }
}

fn since(prepared: &Prepared, sandbox: Option<&Sandbox>) -> SystemTime {
    sandbox.map_or(prepared.at, Sandbox::since)
}

/// What `crictl inspectp` shows.
fn info_of(sandbox: Option<&Sandbox>) -> HashMap<String, String> {
    let why = match sandbox.map(Sandbox::is_up) {
        None => "not started".to_owned(),
        Some(Ok(())) => "running".to_owned(),
        Some(Err(error)) => error.to_string(),
    };
    // crictl takes values for JSON.
    HashMap::from([("virtualMachine".to_owned(), serde_json::Value::from(why).to_string())])
}

/// The guest's, which is the host's.
fn platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), ..Default::default() }
}

impl SandboxService {
    /// Carries `call` out for sandbox `id` and tells of a refusal.
    async fn answer<T>(
        &self,
        name: &str,
        id: &str,
        call: impl Future<Output = Result<T>>,
    ) -> ttrpc::Result<T> {
        answer(&self.log, name, id, unpanicked(call).await)
    }
}

#[async_trait]
impl SandboxApi for SandboxService {
    async fn create_sandbox(
        &self,
        _ctx: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let id = request.sandbox_id.clone();
        self.answer("create sandbox", &id, async { self.create(request) }).await?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _ctx: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let id = request.sandbox_id;
        let sandbox = self.answer("start sandbox", &id, self.tasks.start_sandbox(&id)).await?;
        Ok(StartSandboxResponse {
            pid: sandbox.pid(),
            created_at: MessageField::some(timestamp(sandbox.since())),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _ctx: &TtrpcContext,
        request: PlatformRequest,
    ) -> ttrpc::Result<PlatformResponse> {
        let id = request.sandbox_id;
        self.answer("platform", &id, async { self.tasks.sandbox().find(&id) }).await?;
        Ok(PlatformResponse { platform: MessageField::some(platform()), ..Default::default() })
    }

    async fn stop_sandbox(
        &self,
        _ctx: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        self.answer("stop sandbox", &request.sandbox_id, self.stop(&request)).await?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _ctx: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let id = request.sandbox_id;
        let sandbox = self.answer("wait sandbox", &id, async { self.started(&id) }).await?;
        let exit = sandbox.ended().await;
        let exited_at = MessageField::some(exit.timestamp());
        Ok(WaitSandboxResponse { exit_status: exit.status, exited_at, ..Default::default() })
    }

    async fn sandbox_status(
        &self,
        _ctx: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let id = request.sandbox_id.clone();
        self.answer("sandbox status", &id, async { self.status(request) }).await
    }

    async fn ping_sandbox(&self, _ctx: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        let id = request.sandbox_id;
        self.answer("ping sandbox", &id, self.ping(&id)).await?;
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _ctx: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let id = request.sandbox_id;
        self.answer("shutdown sandbox", &id, self.shut_down(&id)).await?;
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _ctx: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let id = request.sandbox_id;
        self.answer("sandbox metrics", &id, self.metrics(&id)).await
    }
}
