//! The wire between shim and guest agent: ttrpc messages and services both ends share.
//!
//! The messages are generated from `proto/`; see there for what each means. [`convert`] turns the
//! OCI runtime configuration into its wire form and back. [`forward`] is what goes over a connection of its own instead,
//! as no message does.

pub mod convert;
pub mod forward;

/// Messages and services as the code generator writes them.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/wire/mod.rs"));
}

pub use wire::{agent, agent_ttrpc, csi, empty, health, health_ttrpc, oci, types};
