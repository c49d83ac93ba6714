//! The service `grpc.Health`.

use agent_protocol::{
    health::{CheckRequest, HealthCheckResponse, VersionCheckResponse, health_check_response::ServingStatus},
    health_ttrpc,
};
use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;

/// Version of the agent protocol, as agents in the field tell it.
const PROTOCOL: &str = "0.0.1";

/// Whoever gets an answer has reached an agent that serves.
pub(crate) struct Health;

#[async_trait]
impl health_ttrpc::Health for Health {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            grpc_version: PROTOCOL.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }
}
