//! The calls, one for each the host makes; the streams' are in [`crate::streams`].
//!
//! All return [`Error::Timeout`], [`Error::Closed`], [`Error::Guest`] or [`Error::Protocol`].

use std::time::Duration;

use agent_protocol::{
    agent::{
        ARPNeighbors, AddARPNeighborsRequest, AddSwapRequest, CreateContainerRequest, CreateSandboxRequest,
        DestroySandboxRequest, ExecProcessRequest, GetIPTablesRequest, GetMetricsRequest, GetOOMEventRequest,
        GuestDetailsRequest, GuestDetailsResponse, ListInterfacesRequest, ListRoutesRequest,
        OnlineCPUMemRequest, PauseContainerRequest, RemoveContainerRequest, ReseedRandomDevRequest,
        ResizeVolumeRequest, ResumeContainerRequest, Routes, SetGuestDateTimeRequest, SetIPTablesRequest,
        SetPolicyRequest, SignalProcessRequest, StartContainerRequest, StatsContainerRequest,
        StatsContainerResponse, UpdateContainerRequest, UpdateInterfaceRequest, UpdateRoutesRequest,
        VolumeStatsRequest, WaitProcessRequest,
    },
    csi::VolumeStatsResponse,
    health::{CheckRequest, health_check_response::ServingStatus},
    oci,
    types::{ARPNeighbor, Interface, Route},
};
use protobuf::MessageField;
use ttrpc::context::Context;

use crate::{client::AgentClient, error::Error, streams::StreamPorts, untrusted::Untrusted};

type Result<T> = std::result::Result<T, Error>;

/// Makes one call of the agent's service: name for messages, deadline, method, request.
macro_rules! ask {
    ($client:expr, $name:literal, $limit:expr, $method:ident, $request:expr) => {{
        let (agent, request) = ($client.agent.clone(), $request);
        let answer = async move { agent.$method(Context::default(), &request).await };
        $client.call($name, $limit, answer).await
    }};
}
pub(crate) use ask;

impl AgentClient {
    fn limit(&self) -> Option<Duration> {
        Some(self.timeouts.call)
    }

    /// Asks the agent whether it serves.
    ///
    /// # Errors
    ///
    /// Also [`Error::Protocol`] when it answers that it does not.
    pub async fn check(&self) -> Result<()> {
        let (health, request) = (self.health.clone(), CheckRequest::default());
        let answer = async move { health.check(Context::default(), &request).await };
        let reply = self.call("Check", Some(self.timeouts.check), answer).await?;
        match reply.status.enum_value() {
            Ok(ServingStatus::SERVING) => Ok(()),
            other => Err(Error::protocol("Check", format!("health is {other:?}, not SERVING"))),
        }
    }

    /// Prepares the guest for a pod: names, kernel modules, shared directories.
    pub async fn create_sandbox(&self, request: CreateSandboxRequest) -> Result<()> {
        ask!(self, "CreateSandbox", Some(self.timeouts.create), create_sandbox, request).map(drop)
    }

    /// Ends every container and undoes [`create_sandbox`](Self::create_sandbox).
    pub async fn destroy_sandbox(&self) -> Result<()> {
        let request = DestroySandboxRequest::default();
        ask!(self, "DestroySandbox", self.limit(), destroy_sandbox, request).map(drop)
    }

    /// Creates a container; its process waits to be started.
    pub async fn create_container(&self, request: CreateContainerRequest) -> Result<()> {
        ask!(self, "CreateContainer", Some(self.timeouts.create), create_container, request).map(drop)
    }

    /// Lets a created container's process run.
    pub async fn start_container(&self, container: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: container.to_owned(), ..Default::default() };
        ask!(self, "StartContainer", self.limit(), start_container, request).map(drop)
    }

    /// Removes a container. The guest gives its processes `timeout`, in whole seconds, to end; zero leaves
    /// the time to the agent.
    pub async fn remove_container(&self, container: &str, timeout: Duration) -> Result<()> {
        let request = RemoveContainerRequest {
            container_id: container.to_owned(),
            timeout: u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let limit = self.timeouts.call.saturating_add(timeout);
        ask!(self, "RemoveContainer", Some(limit), remove_container, request).map(drop)
    }

    /// Starts another process in a running container. Its streams are the connections at `ports`.
    pub async fn exec_process(
        &self,
        container: &str,
        exec: &str,
        process: oci::Process,
        ports: StreamPorts,
    ) -> Result<()> {
        let request = ExecProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            process: MessageField::some(process),
            stdin_port: ports.stdin,
            stdout_port: ports.stdout,
            stderr_port: ports.stderr,
            ..Default::default()
        };
        ask!(self, "ExecProcess", self.limit(), exec_process, request).map(drop)
    }

    /// Sends `signal`, in the guest's numbers, to a process. An empty `exec` means every process of the
    /// container to some agents in the field, for others its first one.
    pub async fn signal_process(&self, container: &str, exec: &str, signal: u32) -> Result<()> {
        let request = SignalProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            ..Default::default()
        };
        ask!(self, "SignalProcess", self.limit(), signal_process, request).map(drop)
    }

    /// Waits, without a deadline, until a process ends. Returns its exit status, 128 + n after signal n;
    /// what the guest claims beyond 0 to 255 is clamped.
    pub async fn wait_process(&self, container: &str, exec: &str) -> Result<u8> {
        let request = WaitProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let reply = ask!(self, "WaitProcess", None, wait_process, request)?;
        Ok(u8::try_from(reply.status.max(0)).unwrap_or(u8::MAX))
    }

    /// Gives the network interface of this address, which the guest may have to wait for, its name, size and IP
    /// addresses, and puts it to use.
    pub async fn update_interface(&self, interface: Interface) -> Result<()> {
        let request =
            UpdateInterfaceRequest { interface: MessageField::some(interface), ..Default::default() };
        ask!(self, "UpdateInterface", self.limit(), update_interface, request).map(drop)
    }

    /// Makes these the guest's routes, besides those that its addresses bring along.
    pub async fn update_routes(&self, routes: Vec<Route>) -> Result<()> {
        let routes = MessageField::some(Routes { routes, ..Default::default() });
        let request = UpdateRoutesRequest { routes, ..Default::default() };
        ask!(self, "UpdateRoutes", self.limit(), update_routes, request).map(drop)
    }

    /// Makes neighbours known to the guest for good.
    pub async fn add_arp_neighbors(&self, arp_neighbors: Vec<ARPNeighbor>) -> Result<()> {
        let neighbors = MessageField::some(ARPNeighbors { arp_neighbors, ..Default::default() });
        let request = AddARPNeighborsRequest { neighbors, ..Default::default() };
        ask!(self, "AddARPNeighbors", self.limit(), add_arp_neighbors, request).map(drop)
    }

    /// The guest's network interfaces, as it says.
    pub async fn interfaces(&self) -> Result<Untrusted<Vec<Interface>>> {
        let request = ListInterfacesRequest::default();
        ask!(self, "ListInterfaces", self.limit(), list_interfaces, request)
            .map(|reply| Untrusted::new(reply.interfaces))
    }

    /// The guest's routes, as it says.
    pub async fn routes(&self) -> Result<Untrusted<Vec<Route>>> {
        let request = ListRoutesRequest::default();
        ask!(self, "ListRoutes", self.limit(), list_routes, request).map(|reply| Untrusted::new(reply.routes))
    }

    /// Has the guest use `cpus` of its processors, those it booted with among them, or all if it is 0, and, unless
    /// `cpu_only`, all its memory. Kata's agent brings processors online up to that number; ours also takes those
    /// beyond it offline.
    pub async fn online_cpu_mem(&self, cpus: u32, cpu_only: bool) -> Result<()> {
        let request = OnlineCPUMemRequest { wait: true, nb_cpus: cpus, cpu_only, ..Default::default() };
        ask!(self, "OnlineCPUMem", self.limit(), online_cpu_mem, request).map(drop)
    }

    /// Has the guest swap to the disk in these slots, of the root bus and of the bridge there. Whoever plugged it in has
    /// prepared it by mkswap.
    pub async fn add_swap(&self, slots: [u8; 2]) -> Result<()> {
        let request = AddSwapRequest { pci_path: slots.map(u32::from).to_vec(), ..Default::default() };
        ask!(self, "AddSwap", self.limit(), add_swap, request).map(drop)
    }

    /// What a container uses, as its cgroup counts it.
    pub async fn stats_container(&self, container: &str) -> Result<StatsContainerResponse> {
        let request = StatsContainerRequest { container_id: container.to_owned(), ..Default::default() };
        ask!(self, "StatsContainer", self.limit(), stats_container, request)
    }

    /// Freezes every process of a container.
    pub async fn pause(&self, container: &str) -> Result<()> {
        let request = PauseContainerRequest { container_id: container.to_owned(), ..Default::default() };
        ask!(self, "PauseContainer", self.limit(), pause_container, request).map(drop)
    }

    /// Undoes [`pause`](Self::pause).
    pub async fn resume(&self, container: &str) -> Result<()> {
        let request = ResumeContainerRequest { container_id: container.to_owned(), ..Default::default() };
        ask!(self, "ResumeContainer", self.limit(), resume_container, request).map(drop)
    }

    /// Changes a container's limits.
    pub async fn update_container(&self, container: &str, resources: oci::LinuxResources) -> Result<()> {
        let request = UpdateContainerRequest {
            container_id: container.to_owned(),
            resources: MessageField::some(resources),
            ..Default::default()
        };
        ask!(self, "UpdateContainer", self.limit(), update_container, request).map(drop)
    }

    /// The agent's version, what it supports, and the size of its kernel's memory blocks: asked once.
    pub async fn guest_details(&self) -> Result<&GuestDetailsResponse> {
        let ask = async || {
            let request = GuestDetailsRequest { mem_block_size: true, ..Default::default() };
            ask!(self, "GetGuestDetails", self.limit(), get_guest_details, request)
        };
        self.details.get_or_try_init(ask).await
    }

    /// Mixes `entropy` into the guest's random numbers.
    pub async fn reseed_random(&self, entropy: Vec<u8>) -> Result<()> {
        let request = ReseedRandomDevRequest { data: entropy, ..Default::default() };
        ask!(self, "ReseedRandomDev", self.limit(), reseed_random_dev, request).map(drop)
    }

    /// Sets the guest's clock to `since_epoch`, exact to the microsecond.
    pub async fn set_date_time(&self, since_epoch: Duration) -> Result<()> {
        let request = SetGuestDateTimeRequest {
            sec: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
            usec: i64::from(since_epoch.subsec_micros()),
            ..Default::default()
        };
        ask!(self, "SetGuestDateTime", self.limit(), set_guest_date_time, request).map(drop)
    }

    /// Waits, without a deadline, until a container runs out of memory. Returns what the guest says is the
    /// container's id.
    pub async fn oom_event(&self) -> Result<Untrusted<String>> {
        let request = GetOOMEventRequest::default();
        ask!(self, "GetOOMEvent", None, get_oom_event, request)
            .map(|event| Untrusted::new(event.container_id))
    }

    /// Space and inodes of the file system at `path`, which is a volume's.
    pub async fn volume_stats(&self, path: &str) -> Result<VolumeStatsResponse> {
        let request = VolumeStatsRequest { volume_guest_path: path.to_owned(), ..Default::default() };
        ask!(self, "GetVolumeStats", self.limit(), get_volume_stats, request)
    }

    /// Has the file system at `path`, which is a volume's, grow to `size` bytes.
    pub async fn resize_volume(&self, path: &str, size: u64) -> Result<()> {
        let request = ResizeVolumeRequest { volume_guest_path: path.to_owned(), size, ..Default::default() };
        ask!(self, "ResizeVolume", self.limit(), resize_volume, request).map(drop)
    }

    /// The guest's rules of its packet filter, as `iptables-save` prints them.
    pub async fn ip_tables(&self, is_ipv6: bool) -> Result<Vec<u8>> {
        let request = GetIPTablesRequest { is_ipv6, ..Default::default() };
        ask!(self, "GetIPTables", self.limit(), get_ip_tables, request).map(|reply| reply.data)
    }

    /// Makes these the guest's rules, as `iptables-restore` reads them.
    pub async fn set_ip_tables(&self, is_ipv6: bool, data: Vec<u8>) -> Result<()> {
        let request = SetIPTablesRequest { is_ipv6, data, ..Default::default() };
        ask!(self, "SetIPTables", self.limit(), set_ip_tables, request).map(drop)
    }

    /// Makes this what the agent may be asked to do from now on.
    pub async fn set_policy(&self, policy: String) -> Result<()> {
        let request = SetPolicyRequest { policy, ..Default::default() };
        ask!(self, "SetPolicy", self.limit(), set_policy, request).map(drop)
    }

    /// The agent's own metrics, in Prometheus' text format if the guest is honest.
    pub async fn metrics(&self) -> Result<Untrusted<String>> {
        let request = GetMetricsRequest::default();
        ask!(self, "GetMetrics", self.limit(), get_metrics, request)
            .map(|reply| Untrusted::new(reply.metrics))
    }
}
