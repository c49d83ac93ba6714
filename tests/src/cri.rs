//! A client of the Container Runtime Interface, as kubelet is one: the calls that cases need, each with a deadline.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AttachRequest, ContainerConfig, ContainerStats, ContainerStatsRequest, ContainerStatus,
    ContainerStatusRequest, CreateContainerRequest, ExecRequest, ExecSyncRequest, ImageSpec,
    ImageStatusRequest, PodSandboxConfig, PodSandboxStats, PodSandboxStatsRequest, PodSandboxStatus,
    PodSandboxStatusRequest, PortForwardRequest, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
    UpdateContainerResourcesRequest,
};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::command::Output;
use crate::{Context, Failure, Result};

/// Longest time for one call: one of many boots at once on a machine without KVM.
const PATIENCE: Duration = Duration::from_secs(240);

/// Which streams of a process are wanted.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "as CRI has them")]
pub struct Streams {
    /// Its input.
    pub stdin: bool,
    /// Its output.
    pub stdout: bool,
    /// Its errors.
    pub stderr: bool,
    /// Whether it has a terminal.
    pub tty: bool,
}

/// A connection to containerd's CRI.
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects to containerd's socket.
    pub fn connect(socket: &Path) -> Result<Cri> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?.timeout(PATIENCE);
        let channel = runtime.block_on(endpoint.connect()).context(socket.display())?;
        Ok(Cri { runtime, channel })
    }

    fn call<T>(&self, what: &str, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
        let answer = self.runtime.block_on(call);
        answer
            .map(Response::into_inner)
            .map_err(|status| Failure::new(format!("{what}: {}", status.message())))
    }

    fn pods(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    /// Whether CRI knows an image.
    pub fn has_image(&self, image: &str) -> Result<bool> {
        let request = ImageStatusRequest { image: Some(image_of(image)), verbose: false };
        let mut images = ImageServiceClient::new(self.channel.clone());
        Ok(self.call("ImageStatus", images.image_status(request))?.image.is_some())
    }

    /// Makes a pod; returns its sandbox's id.
    pub fn run_pod(&self, config: &PodSandboxConfig, handler: &str) -> Result<String> {
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        Ok(self.call("RunPodSandbox", self.pods().run_pod_sandbox(request))?.pod_sandbox_id)
    }

    /// Where a pod stands, with its addresses.
    pub fn pod_status(&self, pod: &str) -> Result<PodSandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: false };
        let response = self.call("PodSandboxStatus", self.pods().pod_sandbox_status(request))?;
        response.status.context("PodSandboxStatus: the status")
    }

    /// Stops a pod with all its containers.
    pub fn stop_pod(&self, pod: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.call("StopPodSandbox", self.pods().stop_pod_sandbox(request)).map(drop)
    }

    /// Removes a pod with all its containers.
    pub fn remove_pod(&self, pod: &str) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.call("RemovePodSandbox", self.pods().remove_pod_sandbox(request)).map(drop)
    }

    /// Makes a container in a pod; returns its id.
    pub fn create(
        &self,
        pod: &str,
        container: &ContainerConfig,
        config: &PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(container.clone()),
            sandbox_config: Some(config.clone()),
        };
        Ok(self.call("CreateContainer", self.pods().create_container(request))?.container_id)
    }

    /// Starts a container.
    pub fn start(&self, container: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: container.to_owned() };
        self.call("StartContainer", self.pods().start_container(request)).map(drop)
    }

    /// Where a container stands.
    pub fn status(&self, container: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let response = self.call("ContainerStatus", self.pods().container_status(request))?;
        response.status.context("ContainerStatus: the status")
    }

    /// Stops a container: SIGTERM, and SIGKILL after `grace` seconds.
    pub fn stop(&self, container: &str, grace: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout: grace };
        self.call("StopContainer", self.pods().stop_container(request)).map(drop)
    }

    /// Removes a container.
    pub fn remove(&self, container: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: container.to_owned() };
        self.call("RemoveContainer", self.pods().remove_container(request)).map(drop)
    }

    /// Runs a command in a container and waits for it.
    pub fn exec<'a>(&self, container: &str, command: impl IntoIterator<Item = &'a str>) -> Result<Output> {
        let cmd = command.into_iter().map(str::to_owned).collect();
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 60 };
        let began = std::time::Instant::now();
        let done = self.call("ExecSync", self.pods().exec_sync(request))?;
        Ok(Output { status: done.exit_code, stdout: done.stdout, stderr: done.stderr, took: began.elapsed() })
    }

    /// Where what a command in a container says is to be had, and what it reads to be given.
    pub fn exec_url(&self, container: &str, command: Vec<String>, streams: Streams) -> Result<String> {
        let Streams { stdin, stdout, stderr, tty } = streams;
        let container_id = container.to_owned();
        let request = ExecRequest { container_id, cmd: command, tty, stdin, stdout, stderr };
        Ok(self.call("Exec", self.pods().exec(request))?.url)
    }

    /// The same for a container's own process.
    pub fn attach_url(&self, container: &str, streams: Streams) -> Result<String> {
        let Streams { stdin, stdout, stderr, tty } = streams;
        let request = AttachRequest { container_id: container.to_owned(), stdin, tty, stdout, stderr };
        Ok(self.call("Attach", self.pods().attach(request))?.url)
    }

    /// Where ports of a pod are to be had.
    pub fn port_forward_url(&self, pod: &str, ports: Vec<i32>) -> Result<String> {
        let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: ports };
        Ok(self.call("PortForward", self.pods().port_forward(request))?.url)
    }

    /// What a container uses.
    pub fn stats(&self, container: &str) -> Result<ContainerStats> {
        let request = ContainerStatsRequest { container_id: container.to_owned() };
        let response = self.call("ContainerStats", self.pods().container_stats(request))?;
        response.stats.context("ContainerStats: the statistics")
    }

    /// What a pod uses.
    pub fn pod_stats(&self, pod: &str) -> Result<PodSandboxStats> {
        let request = PodSandboxStatsRequest { pod_sandbox_id: pod.to_owned() };
        let response = self.call("PodSandboxStats", self.pods().pod_sandbox_stats(request))?;
        response.stats.context("PodSandboxStats: the statistics")
    }

    /// Changes a container's limits.
    pub fn update(&self, request: UpdateContainerResourcesRequest) -> Result<()> {
        self.call("UpdateContainerResources", self.pods().update_container_resources(request)).map(drop)
    }
}

/// An image by its name.
pub fn image_of(name: &str) -> ImageSpec {
    ImageSpec { image: name.to_owned(), ..Default::default() }
}
