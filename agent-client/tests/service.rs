//! Against a real ttrpc server: calls overlap, and what it does not have is told from what is gone.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use agent_client::{AgentClient, Timeouts};
use agent_protocol::{
    agent::{
        SignalProcessRequest, StatsContainerRequest, StatsContainerResponse, WaitProcessRequest,
        WaitProcessResponse,
    },
    agent_ttrpc::{AgentService, create_agent_service},
    empty::Empty,
    health::{CheckRequest, HealthCheckResponse, health_check_response::ServingStatus},
    health_ttrpc::{Health, create_health},
};
use async_trait::async_trait;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
};
use ttrpc::{
    Code,
    r#async::{Server, TtrpcContext, transport::Listener},
};

/// One process, which lives until it is signalled.
struct Agent {
    signal: watch::Sender<u32>,
}

#[async_trait]
impl AgentService for Agent {
    async fn wait_process(
        &self,
        _: &TtrpcContext,
        _: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let mut signal = self.signal.subscribe();
        let signal = *signal.wait_for(|signal| *signal > 0).await.unwrap();
        Ok(WaitProcessResponse { status: 128 + signal as i32, ..Default::default() })
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.signal.send_replace(request.signal);
        Ok(Empty::default())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        _: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        Err(ttrpc::error::get_rpc_status(Code::NOT_FOUND, "no container \"c\""))
    }
}

#[async_trait]
impl Health for Agent {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }
}

async fn served() -> (AgentClient, Server, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let agent = Arc::new(Agent { signal: watch::Sender::new(0) });
    let mut server = Server::new()
        .add_listener(Listener::from(UnixListener::bind(&path).unwrap()))
        .register_service(create_agent_service(agent.clone()))
        .register_service(create_health(agent));
    server.start().await.unwrap();
    let client = AgentClient::over(UnixStream::connect(&path).await.unwrap(), Timeouts::default());
    (client, server, directory)
}

#[tokio::test]
async fn a_pending_wait_holds_up_no_other_call() {
    let (client, _server, _directory) = served().await;
    let waits: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.wait_process("c", "").await })
        })
        .collect();
    client.check().await.unwrap();
    client.signal_process("c", "", 9).await.unwrap();
    for wait in waits {
        assert_eq!(wait.await.unwrap().unwrap(), 137);
    }
}

#[tokio::test]
async fn what_is_gone_and_what_is_unsupported_are_told_apart() {
    let (client, _server, _directory) = served().await;
    let gone = client.stats_container("c").await.unwrap_err();
    assert!(gone.is_not_found() && !gone.is_unsupported(), "{gone}");
    let lacking = client.pause("c").await.unwrap_err();
    assert!(lacking.is_unsupported() && !lacking.is_not_found(), "{lacking}");
}
