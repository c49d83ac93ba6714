//! The other end of the wire, frame by frame, so that it can misbehave in any way.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use agent_client::{AgentClient, Timeouts};
use agent_protocol::health::{HealthCheckResponse, health_check_response::ServingStatus};
use protobuf::{Message, MessageField};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use ttrpc::proto::{Code, MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_RESPONSE, MessageHeader, Request, Response};

/// A scripted agent.
pub(crate) struct Peer<S = DuplexStream> {
    pub(crate) stream: S,
}

/// A client and the agent it talks to, with `room` bytes between them in either direction.
pub(crate) fn pair(room: usize) -> (AgentClient, Peer) {
    let (host, guest) = duplex(room);
    (AgentClient::over(host, Timeouts::default()), Peer { stream: guest })
}

/// What the host asked, and the stream to answer on.
pub(crate) struct Asked {
    pub(crate) stream_id: u32,
    pub(crate) method: String,
    pub(crate) payload: Vec<u8>,
}

impl Asked {
    pub(crate) fn message<M: Message>(&self) -> M {
        M::parse_from_bytes(&self.payload).unwrap()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// The next request, or `None` when the host has closed.
    pub(crate) async fn asked(&mut self) -> Option<Asked> {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        self.stream.read_exact(&mut header).await.ok()?;
        let header = MessageHeader::from(header);
        let mut body = vec![0; header.length as usize];
        self.stream.read_exact(&mut body).await.ok()?;
        let request = Request::parse_from_bytes(&body).unwrap();
        Some(Asked { stream_id: header.stream_id, method: request.method, payload: request.payload })
    }

    pub(crate) async fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn frame(&mut self, stream_id: u32, kind: u8, body: &[u8]) {
        self.bytes(&frame(stream_id, kind, body)).await;
    }

    /// The right answer to a request.
    pub(crate) async fn answer(&mut self, asked: &Asked, message: &impl Message) {
        self.bytes(&answer(asked.stream_id, message)).await;
    }

    pub(crate) async fn refuse(&mut self, asked: &Asked, code: Code, message: &str) {
        let status = ttrpc::error::get_status(code, message);
        let response = Response { status: MessageField::some(status), ..Default::default() };
        self.frame(asked.stream_id, MESSAGE_TYPE_RESPONSE, &response.write_to_bytes().unwrap()).await;
    }

    /// Answers one health check.
    pub(crate) async fn healthy(&mut self) {
        let asked = self.asked().await.unwrap();
        assert_eq!(asked.method, "Check");
        self.answer(&asked, &health(ServingStatus::SERVING)).await;
    }
}

pub(crate) fn health(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into(), ..Default::default() }
}

pub(crate) fn header(length: u32, stream_id: u32, kind: u8) -> Vec<u8> {
    MessageHeader { length, stream_id, type_: kind, flags: 0 }.into()
}

pub(crate) fn frame(stream_id: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    [header(body.len() as u32, stream_id, kind), body.to_vec()].concat()
}

pub(crate) fn answer(stream_id: u32, message: &impl Message) -> Vec<u8> {
    let payload = message.write_to_bytes().unwrap();
    let response = Response { payload, ..Default::default() };
    frame(stream_id, MESSAGE_TYPE_RESPONSE, &response.write_to_bytes().unwrap())
}
