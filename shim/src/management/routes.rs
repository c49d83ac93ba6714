//! Who answers what.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes},
    header::{CONTENT_TYPE, HeaderValue},
};
use slog::warn;
use tokio::time::timeout;

use super::{Management, hybrid, scrape, volumes};
use crate::error::Error;

/// The longest body of a request, in bytes: rules and policies are long, and the guest takes no message of 4 MiB.
const BODY: usize = 1 << 20;
/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Metrics,
    AgentUrl,
    VolumeStats,
    ResizeVolume,
    Rules { is_ipv6: bool },
    SetRules { is_ipv6: bool },
    SetPolicy,
}

/// A body, and what it is.
type Told = (&'static str, Vec<u8>);

/// Why there is no answer.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let status = match &error {
            Error::InvalidArgument(_) => StatusCode::BAD_REQUEST,
            Error::NotFound(_) => StatusCode::NOT_FOUND,
            Error::AlreadyExists(_) | Error::FailedPrecondition(_) => StatusCode::CONFLICT,
            Error::Unimplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Error::DeadlineExceeded(_) => StatusCode::GATEWAY_TIMEOUT,
            Error::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Error::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, error.to_string())
    }
}

/// Answers a request, whatever it is.
pub(super) async fn answer<B>(management: &Management, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let what = format!("{} {}", request.method(), request.uri().path());
    let (status, (kind, body)) = match asked(management, request).await {
        Ok(told) => (StatusCode::OK, told),
        Err(Refusal(status, why)) => {
            warn!(management.log, "management: {why}"; "request" => what, "status" => status.as_u16());
            (status, (TEXT, format!("{why}\n").into_bytes()))
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

async fn asked<B>(management: &Management, request: Request<B>) -> Result<Told, Refusal>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let asked = meant(request.method(), request.uri().path())?;
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = match asked {
        Asked::ResizeVolume | Asked::SetRules { .. } | Asked::SetPolicy => read(request.into_body()).await?,
        _ => Bytes::new(),
    };
    let sandbox = management.sandbox.upgrade();
    let sandbox = sandbox.ok_or_else(|| Error::Unavailable("the virtual machine is gone".into()))?;
    let agent = sandbox.agent();
    Ok(match asked {
        Asked::Metrics => (scrape::FORMAT, scrape::text(management, &sandbox).await?.into_bytes()),
        Asked::AgentUrl => (TEXT, hybrid::agent_url(&sandbox)?.into_bytes()),
        Asked::VolumeStats => (JSON, volumes::stats(&sandbox, &query).await?),
        Asked::ResizeVolume => (TEXT, volumes::resize(&sandbox, &body).await.map(|()| Vec::new())?),
        Asked::Rules { is_ipv6 } => (TEXT, sandbox.ask(agent.ip_tables(is_ipv6)).await?),
        Asked::SetRules { is_ipv6 } => {
            sandbox.ask(agent.set_ip_tables(is_ipv6, body.to_vec())).await?;
            (TEXT, Vec::new())
        }
        Asked::SetPolicy => {
            let policy = String::from_utf8(body.to_vec());
            let policy = policy.map_err(|_| Error::InvalidArgument("policy: it is no text".into()))?;
            sandbox.ask(agent.set_policy(policy)).await?;
            (TEXT, Vec::new())
        }
    })
}

/// A method that a path does not know is answered as the shims of the field do.
fn meant(method: &Method, path: &str) -> Result<Asked, Refusal> {
    let all: &[(Method, Asked)] = match path {
        "/metrics" => &[(Method::GET, Asked::Metrics)],
        "/agent-url" => &[(Method::GET, Asked::AgentUrl)],
        "/direct-volume/stats" => &[(Method::GET, Asked::VolumeStats)],
        "/direct-volume/resize" => &[(Method::POST, Asked::ResizeVolume)],
        "/iptables" => &[
            (Method::GET, Asked::Rules { is_ipv6: false }),
            (Method::PUT, Asked::SetRules { is_ipv6: false }),
        ],
        "/ip6tables" => {
            &[(Method::GET, Asked::Rules { is_ipv6: true }), (Method::PUT, Asked::SetRules { is_ipv6: true })]
        }
        "/policy" => &[(Method::PUT, Asked::SetPolicy)],
        _ => return Err(Refusal(StatusCode::NOT_FOUND, format!("{path:?}: there is no such thing"))),
    };
    let found = all.iter().find(|(known, _)| known == method).map(|(_, asked)| *asked);
    found.ok_or_else(|| {
        let known: Vec<_> = all.iter().map(|(method, _)| method.as_str()).collect();
        let why = format!("{path} takes {}, not {method}", known.join(" and "));
        Refusal(StatusCode::NOT_IMPLEMENTED, why)
    })
}

async fn read<B>(body: B) -> Result<Bytes, Refusal>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match timeout(PATIENCE, Limited::new(body, BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("a body of more than {BODY} bytes")))
        }
        Ok(Err(error)) => Err(Refusal(StatusCode::BAD_REQUEST, error.to_string())),
        Err(_) => Err(Refusal(StatusCode::REQUEST_TIMEOUT, "the body does not come".into())),
    }
}
