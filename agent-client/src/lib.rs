//! How the host asks the guest.
//!
//! ```text
//! reach() ─── attempts, paced, or at the guest's notice that its agent serves ──> AgentClient ─> typed calls
//! ```
//!
//! The guest is not trusted: every call that can be bounded has a deadline of ours, replies are checked
//! before they are believed, and text from the guest is an [`Untrusted`] value or an escaped message.

mod calls;
mod client;
mod copy;
mod durations;
mod error;
mod reach;
mod streams;
mod transport;
mod untrusted;

pub use agent_protocol::{agent, oci};
pub use client::{AgentClient, Timeouts};
pub use copy::Copied;
pub use error::{Code, Error};
pub use reach::{AGENT_PORT, Dialing, READY_PORT, reach};
pub use streams::{STREAM_CHUNK, STREAM_PORT, StreamPorts};
pub use untrusted::Untrusted;
