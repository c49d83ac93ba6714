//! The wire between shim and guest agent: ttrpc messages and services both ends share.
//!
//! Generated from `proto/`; see there for what each message means.

/// Messages and services as the code generator writes them.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/wire/mod.rs"));
}

pub use wire::{agent, agent_ttrpc, csi, empty, health, health_ttrpc, oci, types};
