//! How the host asks the guest.
//!
//! ```text
//! reach() ── ReadyListener: the guest's agent says it serves ─┐
//!    └────── or paced attempts ───────────────────────────────┴─> Endpoint ─> AgentClient ─> typed calls
//! ```
//!
//! The guest is not trusted: every call that can be bounded has a deadline of ours, replies are checked
//! before they are believed, and text from the guest is an [`Untrusted`] value or an escaped message.

mod calls;
mod client;
mod endpoint;
mod error;
mod reach;
mod ready;
mod short_path;
mod streams;
mod transport;
mod untrusted;

pub use agent_protocol::{agent, oci};
pub use client::{AgentClient, Timeouts};
pub use endpoint::{AGENT_PORT, Endpoint};
pub use error::{Code, Error};
pub use reach::{Policy, reach};
pub use ready::{READY_PORT, ReadyListener};
pub use streams::STREAM_CHUNK;
pub use untrusted::Untrusted;
