//! The service's table of methods.

use agent_protocol::{
    agent::{
        AddARPNeighborsRequest, AddSwapPathRequest, AddSwapRequest, CloseStdinRequest, CopyFileRequest,
        CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest, ExecProcessRequest,
        GetDiagnosticDataRequest, GetDiagnosticDataResponse, GetIPTablesRequest, GetIPTablesResponse,
        GetMetricsRequest, GetOOMEventRequest, GuestDetailsRequest, GuestDetailsResponse, Interfaces,
        ListInterfacesRequest, ListRoutesRequest, MemAgentCompactConfig, MemAgentMemcgConfig,
        MemHotplugByProbeRequest, Metrics, OOMEvent, OnlineCPUMemRequest, PauseContainerRequest,
        ReadStreamRequest, ReadStreamResponse, RemoveContainerRequest, RemoveStaleVirtiofsShareMountsRequest,
        ReseedRandomDevRequest, ResizeVolumeRequest, ResumeContainerRequest, Routes, SetGuestDateTimeRequest,
        SetIPTablesRequest, SetIPTablesResponse, SetPolicyRequest, SignalProcessRequest,
        StartContainerRequest, StatsContainerRequest, StatsContainerResponse, TtyWinResizeRequest,
        UpdateContainerRequest, UpdateEphemeralMountsRequest, UpdateInterfaceRequest, UpdateRoutesRequest,
        VolumeStatsRequest, WaitProcessRequest, WaitProcessResponse, WriteStreamRequest, WriteStreamResponse,
    },
    agent_ttrpc::AgentService,
    convert,
    csi::VolumeStatsResponse,
    empty::Empty,
    types::Interface,
};
use async_trait::async_trait;
use ttrpc::{Result, r#async::TtrpcContext};

use super::{Agent, streams::Output, system, to_the_end, volume};
use crate::{cgroup::stats, error::Error, files, hotplug, id::Id, metrics, network};

/// A method of the protocol that this agent does not have.
macro_rules! unimplemented_methods {
    ($($method:ident($request:ty) -> $response:ty = $name:literal;)*) => {$(
        fn $method<'life, 'context, 'future>(
            &'life self,
            _: &'context TtrpcContext,
            _: $request,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<$response>> + Send + 'future>>
        where
            'life: 'future,
            'context: 'future,
            Self: 'future,
        {
            Box::pin(std::future::ready(Err(Error::Unimplemented($name).into())))
        }
    )*};
}

#[async_trait]
impl AgentService for Agent {
    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> Result<Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move { sandbox.create(request).await }).await?;
        Ok(Empty::new())
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> Result<Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move { sandbox.destroy().await }).await?;
        Ok(Empty::new())
    }

    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> Result<Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move { sandbox.create_container(request).await }).await?;
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> Result<Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move { sandbox.start_container(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    async fn remove_container(&self, _: &TtrpcContext, request: RemoveContainerRequest) -> Result<Empty> {
        let sandbox = self.sandbox.clone();
        let id = Id::parse("container", &request.container_id)?;
        to_the_end(async move { sandbox.remove_container(&id).await }).await?;
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Result<Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move { sandbox.exec(&request).await }).await?;
        Ok(Empty::new())
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> Result<Empty> {
        let signal = i32::try_from(request.signal)
            .map_err(|_| Error::invalid(format!("signal {}: no such signal", request.signal)))?;
        let container = self.sandbox.container(&request.container_id)?;
        match request.exec_id.as_str() {
            "" => container.signal_all(signal)?,
            exec => container.process(exec)?.signal(signal)?,
        }
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> Result<WaitProcessResponse> {
        let status = self.process(&request.container_id, &request.exec_id)?.wait().await;
        // Whoever learns of the end should already have been able to learn of its cause.
        self.sandbox.oom().look();
        Ok(WaitProcessResponse { status, ..Default::default() })
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: WriteStreamRequest,
    ) -> Result<WriteStreamResponse> {
        Ok(self.write(&request).await?)
    }

    async fn read_stdout(&self, _: &TtrpcContext, request: ReadStreamRequest) -> Result<ReadStreamResponse> {
        Ok(self.read(&request, Output::Stdout).await?)
    }

    async fn read_stderr(&self, _: &TtrpcContext, request: ReadStreamRequest) -> Result<ReadStreamResponse> {
        Ok(self.read(&request, Output::Stderr).await?)
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> Result<Empty> {
        self.process(&request.container_id, &request.exec_id)?.stdio().close_stdin();
        Ok(Empty::new())
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: TtyWinResizeRequest) -> Result<Empty> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        process.stdio().resize(request.row, request.column)?;
        Ok(Empty::new())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> Result<StatsContainerResponse> {
        Ok(stats::read(self.sandbox.container(&request.container_id)?.cgroup().path()))
    }

    async fn pause_container(&self, _: &TtrpcContext, request: PauseContainerRequest) -> Result<Empty> {
        let container = self.sandbox.container(&request.container_id)?;
        to_the_end(async move { container.pause().await }).await?;
        Ok(Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ResumeContainerRequest) -> Result<Empty> {
        let container = self.sandbox.container(&request.container_id)?;
        to_the_end(async move { container.resume().await }).await?;
        Ok(Empty::new())
    }

    async fn update_container(&self, _: &TtrpcContext, request: UpdateContainerRequest) -> Result<Empty> {
        let container = self.sandbox.container(&request.container_id)?;
        let wire = request.resources.as_ref().ok_or_else(|| Error::invalid("resources: missing"))?;
        let resources =
            convert::resources_from_wire(wire).map_err(|error| Error::invalid(error.to_string()))?;
        container.update(&resources)?;
        Ok(Empty::new())
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        request: UpdateEphemeralMountsRequest,
    ) -> Result<Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move { sandbox.update_mounts(&request.storages).await }).await?;
        Ok(Empty::new())
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: GuestDetailsRequest,
    ) -> Result<GuestDetailsResponse> {
        Ok(system::guest_details(&request))
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> Result<OOMEvent> {
        let container_id = self.sandbox.oom().next().await.to_string();
        Ok(OOMEvent { container_id, ..Default::default() })
    }

    async fn get_metrics(&self, _: &TtrpcContext, _: GetMetricsRequest) -> Result<Metrics> {
        Ok(Metrics { metrics: metrics::text(), ..Default::default() })
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        request: VolumeStatsRequest,
    ) -> Result<VolumeStatsResponse> {
        Ok(volume::stats(&request)?)
    }

    async fn resize_volume(&self, _: &TtrpcContext, request: ResizeVolumeRequest) -> Result<Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move { volume::resize(sandbox.reaper(), &request).await }).await?;
        Ok(Empty::new())
    }

    async fn reseed_random_dev(&self, _: &TtrpcContext, request: ReseedRandomDevRequest) -> Result<Empty> {
        system::reseed_random(&request.data)?;
        Ok(Empty::new())
    }

    async fn set_guest_date_time(&self, _: &TtrpcContext, request: SetGuestDateTimeRequest) -> Result<Empty> {
        system::set_date_time(request.sec, request.usec)?;
        Ok(Empty::new())
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, request: OnlineCPUMemRequest) -> Result<Empty> {
        hotplug::set_online(request.nb_cpus, request.cpu_only, request.wait).await?;
        Ok(Empty::new())
    }

    async fn mem_hotplug_by_probe(
        &self,
        _: &TtrpcContext,
        request: MemHotplugByProbeRequest,
    ) -> Result<Empty> {
        hotplug::probe_memory(&request.mem_hotplug_probe_addr)?;
        Ok(Empty::new())
    }

    async fn add_swap(&self, _: &TtrpcContext, request: AddSwapRequest) -> Result<Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move { sandbox.add_swap_disk(&request.pci_path).await }).await?;
        Ok(Empty::new())
    }

    async fn add_swap_path(&self, _: &TtrpcContext, request: AddSwapPathRequest) -> Result<Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move { sandbox.add_swap(&request.path).await }).await?;
        Ok(Empty::new())
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> Result<Empty> {
        files::copy(&request)?;
        Ok(Empty::new())
    }

    async fn update_interface(&self, _: &TtrpcContext, request: UpdateInterfaceRequest) -> Result<Interface> {
        let sandbox = self.sandbox.clone();
        let asked = request.interface.into_option().ok_or_else(|| Error::invalid("interface: missing"))?;
        Ok(to_the_end(async move { network::update_interface(sandbox.devices(), &asked).await }).await?)
    }

    async fn update_routes(&self, _: &TtrpcContext, request: UpdateRoutesRequest) -> Result<Routes> {
        let asked = request.routes.into_option().ok_or_else(|| Error::invalid("routes: missing"))?;
        Ok(Routes { routes: network::update_routes(&asked.routes)?, ..Default::default() })
    }

    async fn list_interfaces(&self, _: &TtrpcContext, _: ListInterfacesRequest) -> Result<Interfaces> {
        Ok(Interfaces { interfaces: network::interfaces()?, ..Default::default() })
    }

    async fn list_routes(&self, _: &TtrpcContext, _: ListRoutesRequest) -> Result<Routes> {
        Ok(Routes { routes: network::routes()?, ..Default::default() })
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, request: AddARPNeighborsRequest) -> Result<Empty> {
        let asked = request.neighbors.into_option().ok_or_else(|| Error::invalid("neighbors: missing"))?;
        network::add_neighbours(&asked.arp_neighbors)?;
        Ok(Empty::new())
    }

    unimplemented_methods! {
        remove_stale_virtiofs_share_mounts(RemoveStaleVirtiofsShareMountsRequest) -> Empty
            = "RemoveStaleVirtiofsShareMounts";
        get_diagnostic_data(GetDiagnosticDataRequest) -> GetDiagnosticDataResponse = "GetDiagnosticData";
        get_ip_tables(GetIPTablesRequest) -> GetIPTablesResponse = "GetIPTables (the guest has no iptables)";
        set_ip_tables(SetIPTablesRequest) -> SetIPTablesResponse = "SetIPTables (the guest has no iptables)";
        mem_agent_memcg_set(MemAgentMemcgConfig) -> Empty = "MemAgentMemcgSet";
        mem_agent_compact_set(MemAgentCompactConfig) -> Empty = "MemAgentCompactSet";
        set_policy(SetPolicyRequest) -> Empty = "SetPolicy (the agent has no policies)";
    }
}
