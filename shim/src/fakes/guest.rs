//! A guest: processes that do what the test says, behind an agent that answers as ours, unless told otherwise.

mod process;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
};

use agent_protocol::{
    agent::{
        self, CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
        ExecProcessRequest, GetOOMEventRequest, OOMEvent, PauseContainerRequest, ReadStreamRequest,
        ReadStreamResponse, RemoveContainerRequest, ResumeContainerRequest, SignalProcessRequest,
        StartContainerRequest, WaitProcessRequest, WaitProcessResponse, WriteStreamRequest,
        WriteStreamResponse,
    },
    agent_ttrpc::{AgentService, create_agent_service},
    csi,
    empty::Empty,
    health::{CheckRequest, HealthCheckResponse, health_check_response::ServingStatus},
    health_ttrpc::{Health, create_health},
    types,
};
use async_trait::async_trait;
use containerd_shim_protos::ttrpc::{
    self, Code,
    r#async::{Server, TtrpcContext, transport::Listener},
};
use tokio::{net::UnixListener, sync::watch};

use process::{InGuest, Stream};

/// What an agent does with a call instead of carrying it out.
#[derive(Clone)]
enum Instead {
    NeverAnswers,
    Refuses(Code, String),
    /// Carries it out once the other end is dropped.
    Waits(watch::Receiver<()>),
}

/// The container whose process ends as soon as it starts: the one a template is warmed with.
const AT_ONCE: &str = "warm-up";

/// The guest of every machine of a test.
pub(crate) struct Guest {
    instead: Mutex<HashMap<&'static str, Instead>>,
    /// Method and object of every call so far.
    calls: watch::Sender<Vec<String>>,
    /// By the agent's names, in the order of their making.
    processes: Mutex<Vec<(String, Arc<InGuest>)>>,
    out_of_memory: Stream<String>,
    /// What it says of itself.
    figures: Mutex<String>,
}

impl Guest {
    /// A guest whose agent serves at `socket`.
    pub(super) async fn serve(socket: &Path) -> (Arc<Guest>, Server) {
        let guest = Arc::new(Guest {
            instead: Mutex::default(),
            calls: watch::Sender::default(),
            processes: Mutex::default(),
            out_of_memory: Stream::default(),
            figures: Mutex::default(),
        });
        let mut server = Server::new()
            .add_listener(Listener::from(UnixListener::bind(socket).unwrap()))
            .register_service(create_agent_service(guest.clone()))
            .register_service(create_health(guest.clone()));
        server.start().await.unwrap();
        (guest, server)
    }

    /// From now on no call of `method` gets an answer.
    pub(crate) fn never_answers(&self, method: &'static str) {
        self.instead.lock().unwrap().insert(method, Instead::NeverAnswers);
    }

    /// From now on every call of `method` is refused.
    pub(crate) fn refuses(&self, method: &'static str, code: Code, words: &str) {
        self.instead.lock().unwrap().insert(method, Instead::Refuses(code, words.into()));
    }

    /// Calls of `method` are carried out once what this returns is dropped.
    pub(crate) fn delays(&self, method: &'static str) -> watch::Sender<()> {
        let (late, waits) = watch::channel(());
        self.instead.lock().unwrap().insert(method, Instead::Waits(waits));
        late
    }

    /// Does again what it is asked to do.
    pub(crate) fn obeys(&self) {
        self.instead.lock().unwrap().clear();
    }

    /// Waits until a call has come that begins with `call`: a method, or a method and what it is about.
    pub(crate) async fn is_asked(&self, call: &str) {
        let mut calls = self.calls.subscribe();
        calls.wait_for(|calls| calls.iter().any(|one| one.starts_with(call))).await.unwrap();
    }

    /// Waits until a call of `method` has come that is about something that ends so; returns that call.
    pub(crate) async fn is_asked_about(&self, method: &str, end: &str) -> String {
        let is_it = |call: &&String| call.starts_with(method) && call.ends_with(end);
        let mut calls = self.calls.subscribe();
        let calls = calls.wait_for(|calls| calls.iter().any(|call| is_it(&call))).await.unwrap();
        calls.iter().find(is_it).unwrap().clone()
    }

    /// What is noted of calls that begins so, in their order.
    pub(crate) fn noted(&self, start: &str) -> Vec<String> {
        self.calls.borrow().iter().filter(|call| call.starts_with(start)).cloned().collect()
    }

    /// Every call there was of these methods, in their order.
    pub(crate) fn asked(&self, methods: &[&str]) -> Vec<String> {
        let calls = self.calls.borrow();
        let name = |call: &String| call.split(' ').next().unwrap_or_default().to_owned();
        calls.iter().map(name).filter(|call| methods.contains(&call.as_str())).collect()
    }

    /// A container's first process.
    pub(crate) fn init(&self, container: &str) -> Arc<InGuest> {
        self.process(container).unwrap()
    }

    /// The exec that was started last.
    pub(crate) fn exec(&self) -> Arc<InGuest> {
        let processes = self.processes.lock().unwrap();
        processes.iter().rfind(|(id, process)| *id != process.container).unwrap().1.clone()
    }

    /// What it answers when it is asked for metrics.
    pub(crate) fn counts(&self, figures: &str) {
        *self.figures.lock().unwrap() = figures.into();
    }

    /// Says that a container ran out of memory, by whatever name.
    pub(crate) fn runs_out_of_memory(&self, container: &str) {
        self.out_of_memory.put(container.into());
    }

    fn process(&self, id: &str) -> ttrpc::Result<Arc<InGuest>> {
        let processes = self.processes.lock().unwrap();
        let found = processes.iter().rfind(|(one, _)| one == id).map(|(_, process)| process.clone());
        found.ok_or_else(|| ttrpc::error::get_rpc_status(Code::NOT_FOUND, format!("no process {id}")))
    }

    fn add(&self, container: &str, id: &str) {
        self.processes.lock().unwrap().push((id.into(), Arc::new(InGuest::new(container))));
    }

    /// Notes the call and lets the test's orders go first.
    async fn enter(&self, method: &'static str, about: &str) -> ttrpc::Result<()> {
        self.calls.send_modify(|calls| calls.push(format!("{method} {about}")));
        let instead = self.instead.lock().unwrap().get(method).cloned();
        match instead {
            None => Ok(()),
            Some(Instead::Refuses(code, words)) => Err(ttrpc::error::get_rpc_status(code, words)),
            Some(Instead::NeverAnswers) => std::future::pending().await,
            Some(Instead::Waits(mut late)) => {
                while late.changed().await.is_ok() {}
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Health for Guest {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        self.enter("Check", "").await?;
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }
}

#[async_trait]
impl AgentService for Guest {
    async fn create_sandbox(&self, _: &TtrpcContext, asked: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        let module =
            |module: &agent::KernelModule| format!(" [{} {}]", module.name, module.parameters.join(" "));
        let modules: String = asked.kernel_modules.iter().map(module).collect();
        let hooks = asked.guest_hook_path;
        self.enter("CreateSandbox", &format!("{}{modules}{hooks}", asked.sandbox_id)).await?;
        Ok(Empty::new())
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> ttrpc::Result<Empty> {
        self.enter("DestroySandbox", "").await?;
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        asked: CreateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let spec = asked.oci.as_ref().unwrap();
        let seccomp =
            if spec.linux.as_ref().is_some_and(|linux| linux.seccomp.is_some()) { " seccomp" } else { "" };
        let label = spec.process.as_ref().map_or("", |process| process.selinux_label.as_str());
        for agent::Device { id, type_, container_path, options, .. } in &asked.devices {
            let told = format!("{} {container_path} {type_} {id} {options:?}", asked.container_id);
            self.calls.send_modify(|calls| calls.push(format!("Device {told}")));
        }
        let files: Vec<_> = spec.linux.devices.iter().map(|device| device.path.as_str()).collect();
        let rules = spec.linux.resources.devices.len();
        let has = format!("DeviceFiles {} {} {rules}", asked.container_id, files.join(" "));
        self.calls.send_modify(|calls| calls.push(has));
        self.enter("CreateContainer", &format!("{}{seccomp} {label}|", asked.container_id)).await?;
        self.add(&asked.container_id, &asked.exec_id);
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, asked: StartContainerRequest) -> ttrpc::Result<Empty> {
        self.enter("StartContainer", &asked.container_id).await?;
        if asked.container_id == AT_ONCE {
            self.init(AT_ONCE).exits(0);
        }
        Ok(Empty::new())
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        asked: RemoveContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.enter("RemoveContainer", &asked.container_id).await?;
        self.processes.lock().unwrap().retain(|(_, process)| process.container != asked.container_id);
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, asked: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.enter("ExecProcess", &asked.container_id).await?;
        self.add(&asked.container_id, &asked.exec_id);
        Ok(Empty::new())
    }

    async fn signal_process(&self, _: &TtrpcContext, asked: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.enter("SignalProcess", &format!("{} {}", asked.container_id, asked.signal)).await?;
        let id = if asked.exec_id.is_empty() { &asked.container_id } else { &asked.exec_id };
        self.process(id)?.exits(128 + asked.signal as i32);
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        asked: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        self.enter("WaitProcess", &asked.container_id).await?;
        let mut status = self.process(&asked.exec_id)?.status.subscribe();
        let status = status.wait_for(Option::is_some).await.unwrap().unwrap();
        Ok(WaitProcessResponse { status, ..Default::default() })
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        asked: ReadStreamRequest,
    ) -> ttrpc::Result<ReadStreamResponse> {
        self.enter("ReadStdout", &asked.container_id).await?;
        let data = self.process(&asked.exec_id)?.stdout.take().await.unwrap_or_default();
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        asked: ReadStreamRequest,
    ) -> ttrpc::Result<ReadStreamResponse> {
        self.enter("ReadStderr", &asked.container_id).await?;
        let data = self.process(&asked.exec_id)?.stderr.take().await.unwrap_or_default();
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        asked: WriteStreamRequest,
    ) -> ttrpc::Result<WriteStreamResponse> {
        self.enter("WriteStdin", &asked.container_id).await?;
        let len = asked.data.len() as u32;
        self.process(&asked.exec_id)?.input.send_modify(|(bytes, _)| bytes.extend(asked.data));
        Ok(WriteStreamResponse { len, ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, asked: CloseStdinRequest) -> ttrpc::Result<Empty> {
        self.enter("CloseStdin", &asked.container_id).await?;
        self.process(&asked.exec_id)?.input.send_modify(|(_, ended)| *ended = true);
        Ok(Empty::new())
    }

    async fn pause_container(&self, _: &TtrpcContext, asked: PauseContainerRequest) -> ttrpc::Result<Empty> {
        self.enter("PauseContainer", &asked.container_id).await?;
        Ok(Empty::new())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        asked: ResumeContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.enter("ResumeContainer", &asked.container_id).await?;
        Ok(Empty::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        asked: agent::UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let limit = asked.resources.memory.limit;
        self.enter("UpdateContainer", &format!("{} {limit}", asked.container_id)).await?;
        Ok(Empty::new())
    }

    async fn online_cpu_mem(
        &self,
        _: &TtrpcContext,
        asked: agent::OnlineCPUMemRequest,
    ) -> ttrpc::Result<Empty> {
        let what = if asked.cpu_only { "processors" } else { "processors and memory" };
        self.enter("OnlineCPUMem", &format!("{} {what}", asked.nb_cpus)).await?;
        Ok(Empty::new())
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        _: agent::GuestDetailsRequest,
    ) -> ttrpc::Result<agent::GuestDetailsResponse> {
        self.enter("GetGuestDetails", "").await?;
        Ok(agent::GuestDetailsResponse { mem_block_size_bytes: 128 << 20, ..Default::default() })
    }

    async fn tty_win_resize(
        &self,
        _: &TtrpcContext,
        asked: agent::TtyWinResizeRequest,
    ) -> ttrpc::Result<Empty> {
        let size = format!("{} {}x{}", asked.container_id, asked.column, asked.row);
        self.enter("TtyWinResize", &size).await?;
        Ok(Empty::new())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        asked: agent::StatsContainerRequest,
    ) -> ttrpc::Result<agent::StatsContainerResponse> {
        self.enter("StatsContainer", &asked.container_id).await?;
        Ok(Default::default())
    }

    async fn copy_file(&self, _: &TtrpcContext, asked: agent::CopyFileRequest) -> ttrpc::Result<Empty> {
        self.enter("CopyFile", &asked.path).await?;
        Ok(Empty::new())
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        asked: agent::UpdateInterfaceRequest,
    ) -> ttrpc::Result<types::Interface> {
        let types::Interface { name, device_path, ip_addresses, .. } = asked.interface.get_or_default();
        let about = format!("{name} [{device_path}] {} addresses", ip_addresses.len());
        self.enter("UpdateInterface", &about).await?;
        Ok(asked.interface.unwrap_or_default())
    }

    async fn update_routes(
        &self,
        _: &TtrpcContext,
        asked: agent::UpdateRoutesRequest,
    ) -> ttrpc::Result<agent::Routes> {
        self.enter("UpdateRoutes", &asked.routes.routes.len().to_string()).await?;
        Ok(asked.routes.unwrap_or_default())
    }

    async fn add_arp_neighbors(
        &self,
        _: &TtrpcContext,
        asked: agent::AddARPNeighborsRequest,
    ) -> ttrpc::Result<Empty> {
        self.enter("AddARPNeighbors", &asked.neighbors.arp_neighbors.len().to_string()).await?;
        Ok(Empty::new())
    }

    async fn reseed_random_dev(
        &self,
        _: &TtrpcContext,
        asked: agent::ReseedRandomDevRequest,
    ) -> ttrpc::Result<Empty> {
        self.enter("ReseedRandomDev", &asked.data.len().to_string()).await?;
        Ok(Empty::new())
    }

    async fn set_guest_date_time(
        &self,
        _: &TtrpcContext,
        asked: agent::SetGuestDateTimeRequest,
    ) -> ttrpc::Result<Empty> {
        self.enter("SetGuestDateTime", &asked.sec.to_string()).await?;
        Ok(Empty::new())
    }

    async fn get_metrics(
        &self,
        _: &TtrpcContext,
        _: agent::GetMetricsRequest,
    ) -> ttrpc::Result<agent::Metrics> {
        self.enter("GetMetrics", "").await?;
        Ok(agent::Metrics { metrics: self.figures.lock().unwrap().clone(), ..Default::default() })
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        asked: agent::VolumeStatsRequest,
    ) -> ttrpc::Result<csi::VolumeStatsResponse> {
        self.enter("GetVolumeStats", &asked.volume_guest_path).await?;
        let usage = csi::VolumeUsage {
            available: 1,
            total: 3,
            used: 2,
            unit: csi::volume_usage::Unit::BYTES.into(),
            ..Default::default()
        };
        Ok(csi::VolumeStatsResponse { usage: vec![usage], ..Default::default() })
    }

    async fn resize_volume(
        &self,
        _: &TtrpcContext,
        asked: agent::ResizeVolumeRequest,
    ) -> ttrpc::Result<Empty> {
        self.enter("ResizeVolume", &asked.size.to_string()).await?;
        Ok(Empty::new())
    }

    async fn get_ip_tables(
        &self,
        _: &TtrpcContext,
        asked: agent::GetIPTablesRequest,
    ) -> ttrpc::Result<agent::GetIPTablesResponse> {
        let rules = if asked.is_ipv6 { "rules of 6" } else { "rules of 4" };
        self.enter("GetIPTables", rules).await?;
        Ok(agent::GetIPTablesResponse { data: rules.into(), ..Default::default() })
    }

    async fn set_ip_tables(
        &self,
        _: &TtrpcContext,
        asked: agent::SetIPTablesRequest,
    ) -> ttrpc::Result<agent::SetIPTablesResponse> {
        let family = if asked.is_ipv6 { 6 } else { 4 };
        self.enter("SetIPTables", &format!("{family} {}", String::from_utf8_lossy(&asked.data))).await?;
        Ok(Default::default())
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        self.enter("GetOOMEvent", "").await?;
        match self.out_of_memory.take().await {
            Some(container_id) => Ok(OOMEvent { container_id, ..Default::default() }),
            None => std::future::pending().await,
        }
    }
}
