//! What the end-to-end tests and the bench share: a private containerd, the `ctr` command, a raw client of the shim's
//! Task API, and the check that a test left nothing behind.
//!
//! Nothing here touches the host's own containerd: every test process has its own root, state and socket in a
//! temporary directory, and every case its own containerd namespace.

pub mod assets;
pub mod block;
pub mod bundle;
pub mod case;
pub mod command;
pub mod containerd;
pub mod cri;
pub mod docker;
pub mod events;
pub mod eventually;
pub mod failure;
pub mod http;
pub mod keeper;
pub mod kubectl;
pub mod leak;
pub mod machine;
pub mod memory;
pub mod mounts;
pub mod operator;
pub mod pod_network;
pub mod pods;
pub mod shim;
pub mod stdio;
pub mod suite;
pub mod world;

pub use case::Case;
pub use eventually::eventually;
pub use failure::{Context, Failure, Result};
pub use world::World;
