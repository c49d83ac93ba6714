//! containerd's Task API: one method a call, each handing over to the container or process it is about.

mod given_up;

use std::{
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use containerd_shim::{ExitSignal, event::Event};
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
        PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
        ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
        StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    events::task as event,
    protobuf::MessageField,
    shim_async::Task,
    ttrpc::{self, r#async::TtrpcContext},
};
use futures::FutureExt;
use prometheus::HistogramVec;
use slog::{Logger, info, o, warn};
use vmm::Hypervisor;

use self::given_up::Attempts;
use crate::{
    container::{Container, NewContainer, bundle, limits},
    error::{Error, Result},
    events::Events,
    factory::Ready,
    hooks::ContainerHooks,
    ids,
    logging::Verbosity,
    management, memory, oom,
    process::{Process, State},
    sandbox::{Making, OnlySandbox, Sandbox},
    stdio::Paths,
    table::Table,
};

/// The service of one shim: one sandbox and its containers.
pub(crate) struct TaskService {
    namespace: String,
    containers: Arc<Table<Container>>,
    sandbox: OnlySandbox,
    events: Events,
    exit: Arc<ExitSignal>,
    attempts: Attempts,
    /// How long calls take.
    durations: HistogramVec,
    log: Logger,
}

impl TaskService {
    pub(crate) fn new(
        namespace: &str,
        hypervisor: Arc<dyn Hypervisor>,
        ready: Option<Ready>,
        events: Events,
        exit: Arc<ExitSignal>,
        log: Logger,
        verbosity: Verbosity,
    ) -> TaskService {
        TaskService {
            namespace: namespace.to_string(),
            containers: Arc::new(Table::new("container")),
            sandbox: OnlySandbox::new(namespace, hypervisor, ready, log.clone(), verbosity),
            events,
            exit,
            attempts: Attempts::new(log.clone()),
            durations: management::histogram(),
            log,
        }
    }

    pub(crate) fn durations(&self) -> &HistogramVec {
        &self.durations
    }

    /// Stops the sandbox and waits until nothing of it is left.
    pub(crate) async fn stop(&self) {
        self.sandbox.stop("the shim ends").await;
    }

    fn publish(&self, event: impl Event) {
        self.events.publish(event);
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers.get(id)
    }

    fn process(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<Process>)> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        Ok((container, process))
    }

    /// Boots the sandbox that was prepared by that name.
    pub(crate) async fn start_sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        let (sandbox, made) = tokio::select! {
            booted = self.sandbox.boot_prepared(id) => booted?,
            () = self.exit.wait() => return Err(Error::Unavailable("the shim was asked to end".into())),
        };
        let (prepared, _) = self.sandbox.find(id)?;
        self.keep(&sandbox, made, &prepared.bundle);
        Ok(sandbox)
    }

    /// The shim's one sandbox.
    pub(crate) fn sandbox(&self) -> &OnlySandbox {
        &self.sandbox
    }

    /// Ends the shim.
    pub(crate) fn end(&self) {
        self.exit.signal();
    }

    /// The containers that are made.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.all()
    }

    /// Whether nothing would be missed if the shim ended: it has no container and no machine, and makes none. A sandbox
    /// that is no container is there until ShutdownSandbox: containerd remembers it, and 1.7 cannot remove a pod without.
    pub(crate) fn has_nothing(&self) -> bool {
        let is_up = self.sandbox.current().is_some_and(|machine| machine.exit().is_none());
        let is_there = is_up || self.sandbox.prepared().is_some() || self.sandbox.is_being_made();
        !is_there && self.containers.names().is_empty()
    }

    /// Resolves when a Create is given up by its caller.
    pub(crate) async fn create_given_up(&self) {
        self.attempts.given_up().await;
    }

    async fn create_unless_ended(&self, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        tokio::select! {
            created = self.create_container(request) => created,
            () = self.exit.wait() => Err(Error::Unavailable("the shim was asked to end".into())),
        }
    }

    async fn create_container(&self, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        ids::check("container id", &request.id)?;
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(Error::Unimplemented(
                "restoring from a checkpoint is not possible with this runtime".into(),
            ));
        }
        // Given back when this call is dropped at its deadline, as everything else it holds.
        let reserved = self.containers.reserve(&request.id)?;
        let stdio = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let bundle = PathBuf::from(&request.bundle);
        let log = self.log.new(o!("container" => request.id.clone()));
        let (spec, wanted, unknown) = bundle::read(&bundle, &request.id)?;
        unknown.warn(&log);
        limits::check(&spec)?;
        let hooks = ContainerHooks::of(&spec, &request.id, &bundle, &log);
        let obtained = self.sandbox.obtain(&wanted, &spec, hooks.as_ref(), request.options.as_ref());
        let (sandbox, made) = obtained.await?;
        if let Some(hooks) = &hooks {
            if made.is_none() && hooks.at_creation() {
                hooks.create_apart().await?;
            }
            hooks.begin()?;
        }
        let new = NewContainer {
            id: request.id.clone(),
            namespace: self.namespace.clone(),
            bundle,
            rootfs: request.rootfs.clone(),
            stdio,
            owns_sandbox: made.is_some(),
            hooks,
            log,
        };
        let container = Container::create(new, spec, sandbox.clone(), self.events.clone()).await?;
        sandbox.mark("container_created");
        let pid = container.pid();
        reserved.fill(container);
        if let Some(made) = made {
            self.keep(&sandbox, made, Path::new(&request.bundle));
        }
        self.publish(event::TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: MessageField::some(event::TaskIO {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
                ..Default::default()
            }),
            pid,
            ..Default::default()
        });
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    /// From here on the sandbox lives until it is stopped.
    fn keep(&self, sandbox: &Arc<Sandbox>, made: Making<'_>, bundle: &Path) {
        self.sandbox.keep(sandbox, made);
        if let Some(door) = sandbox.door() {
            door.tell(bundle, &self.log);
        }
        management::serve(sandbox, self.containers.clone(), self.durations.clone(), &self.log);
        let (agent, containers) = (sandbox.agent().clone(), self.containers.clone());
        tokio::spawn(oom::forward(agent, containers, self.events.clone(), self.log.clone()));
    }

    async fn start_process(&self, request: StartRequest) -> Result<StartResponse> {
        let container = self.container(&request.id)?;
        let pid = container.pid();
        to_the_end(async move {
            match request.exec_id.as_str() {
                "" => container.start().await.inspect(|()| memory::let_go()),
                exec_id => container.start_exec(exec_id).await,
            }
        })
        .await?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn pause_container(&self, id: String) -> Result<Empty> {
        let (container, events) = (self.container(&id)?, self.events.clone());
        to_the_end(async move {
            container.pause().await?;
            events.publish(event::TaskPaused { container_id: id, ..Default::default() });
            Ok(Empty::new())
        })
        .await
    }

    async fn resume_container(&self, id: String) -> Result<Empty> {
        let (container, events) = (self.container(&id)?, self.events.clone());
        to_the_end(async move {
            container.resume().await?;
            events.publish(event::TaskResumed { container_id: id, ..Default::default() });
            Ok(Empty::new())
        })
        .await
    }

    async fn delete_process(&self, request: DeleteRequest) -> Result<DeleteResponse> {
        let container = self.container(&request.id)?;
        let exit = if request.exec_id.is_empty() {
            let exit = container.delete().await?;
            self.containers.remove(&request.id, &container)?;
            self.publish(event::TaskDelete {
                container_id: request.id,
                pid: container.pid(),
                exit_status: exit.status,
                exited_at: MessageField::some(exit.timestamp()),
                ..Default::default()
            });
            exit
        } else {
            container.delete_exec(&request.exec_id)?
        };
        Ok(DeleteResponse {
            pid: container.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(exit.timestamp()),
            ..Default::default()
        })
    }

    fn describe(&self, request: &StateRequest) -> Result<StateResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let mut response = StateResponse {
            id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            bundle: container.bundle().display().to_string(),
            pid: container.pid(),
            status: process.status(container.is_paused()).into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            ..Default::default()
        };
        if let State::Stopped(exit) = process.state() {
            response.exit_status = exit.status;
            response.exited_at = MessageField::some(exit.timestamp());
        }
        Ok(response)
    }

    /// Ends the shim unless it has a container. One that is being made does not count: containerd asks for the end
    /// after a create that it has given up, and asks only once.
    fn shut_down(&self, request: &ShutdownRequest) {
        // A sandbox that is no container outlives its containers: it has calls of its own.
        let is_done = self.containers.has_nothing_made() && self.sandbox.prepared().is_none();
        if !request.now && !is_done {
            return;
        }
        info!(self.log, "shutdown asked for");
        self.exit.signal();
    }
}

/// Does `work`, also when the call it is done for is dropped at its deadline: what the guest may have done of it by
/// then, the shim must know.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(Error::Failed(error.to_string())))
}

/// Carries a call out that makes much, whose caller would wait for ever if it got no answer.
pub(crate) async fn unpanicked<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let panicked = |_| {
        Err(Error::Failed(
            "the shim panicked: containerd's log says where, in a line with \"panic\"; please report it"
                .into(),
        ))
    };
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(panicked)
}

/// Logs a refusal once, where it leaves the shim, and gives it its status code.
pub(crate) fn answer<T>(log: &Logger, call: &str, id: &str, outcome: Result<T>) -> ttrpc::Result<T> {
    outcome.map_err(|error| {
        warn!(log, "{call}: {error}"; "container" => id);
        error.into()
    })
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _ctx: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let id = request.id.clone();
        let created = self.attempts.hear(&id, unpanicked(self.create_unless_ended(request))).await;
        answer(&self.log, "create", &id, created)
    }

    async fn start(&self, _ctx: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let id = request.id.clone();
        answer(&self.log, "start", &id, self.start_process(request).await)
    }

    async fn exec(&self, _ctx: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        let added = self.container(&id).and_then(|container| container.add_exec(request));
        answer(&self.log, "exec", &id, added).map(|()| Empty::new())
    }

    async fn state(&self, _ctx: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        answer(&self.log, "state", &request.id, self.describe(&request))
    }

    async fn wait(&self, _ctx: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (_container, process) =
            answer(&self.log, "wait", &request.id, self.process(&request.id, &request.exec_id))?;
        let exit = process.exited().await;
        let exited_at = MessageField::some(exit.timestamp());
        Ok(WaitResponse { exit_status: exit.status, exited_at, ..Default::default() })
    }

    async fn kill(&self, _ctx: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let killed = match self.container(&request.id) {
            Ok(container) => container.kill(&request.exec_id, request.signal, request.all).await,
            Err(error) => Err(error),
        };
        answer(&self.log, "kill", &request.id, killed).map(|()| Empty::new())
    }

    async fn delete(&self, _ctx: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let id = request.id.clone();
        answer(&self.log, "delete", &id, self.delete_process(request).await)
    }

    async fn pids(&self, _ctx: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = answer(&self.log, "pids", &request.id, self.container(&request.id))?;
        // Also of one that has stopped: containerd 1.7 and 2 take a task without processes, when they start, for one that
        // was never made, and delete it with the status that nobody has asked for yet.
        let machine = ProcessInfo { pid: container.pid(), ..Default::default() };
        Ok(PidsResponse { processes: vec![machine], ..Default::default() })
    }

    async fn pause(&self, _ctx: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        answer(&self.log, "pause", &id, self.pause_container(request.id).await)
    }

    async fn resume(&self, _ctx: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        answer(&self.log, "resume", &id, self.resume_container(request.id).await)
    }

    async fn checkpoint(&self, _ctx: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let refused = Error::Unimplemented("checkpoint: not possible with this runtime".into());
        answer(&self.log, "checkpoint", &request.id, Err(refused))
    }

    async fn close_io(&self, _ctx: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (_container, process) =
            answer(&self.log, "close io", &request.id, self.process(&request.id, &request.exec_id))?;
        if request.stdin {
            process.close_input();
        }
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _ctx: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let resized = match self.process(&request.id, &request.exec_id) {
            Ok((container, process)) => container.resize(&process, request.height, request.width).await,
            Err(error) => Err(error),
        };
        answer(&self.log, "resize", &request.id, resized).map(|()| Empty::new())
    }

    async fn update(&self, _ctx: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let updated = match self.container(&request.id) {
            Ok(container) => container.update(request.resources.as_ref()).await,
            Err(error) => Err(error),
        };
        answer(&self.log, "update", &request.id, updated).map(|()| Empty::new())
    }

    async fn stats(&self, _ctx: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let stats = match self.container(&request.id) {
            Ok(container) => container.stats().await,
            Err(error) => Err(error),
        };
        let stats = answer(&self.log, "stats", &request.id, stats)?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    async fn connect(&self, _ctx: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        // containerd may ask before there is a container: it wants to know that the shim lives.
        let task_pid = self.containers.get(&request.id).map(|container| container.pid()).unwrap_or_default();
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, ..Default::default() })
    }

    async fn shutdown(&self, _ctx: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.shut_down(&request);
        Ok(Empty::new())
    }
}

#[cfg(test)]
mod tests;
