//! The OCI runtime configuration, to its wire form and back.
//!
//! Names travel in the spelling of the OCI configuration's JSON: `CAP_KILL`, `RLIMIT_NOFILE`, `mount`,
//! `SCMP_ACT_ERRNO`. Agents in the field parse those.
//!
//! The host writes what containerd gave it, so that direction cannot fail. The guest trusts nothing it
//! reads: the other direction returns a [`ConvertError`] that names the field.
//!
//! # Unset and zero
//!
//! proto3 scalars have no "unset": zero, `false` and the empty string or list stand for it, and come
//! back as `None`. Whoever means the value zero cannot say it on this wire. In particular
//!
//! - a memory limit, reservation or swap of 0 is "not set", -1 is "unlimited";
//! - a cpu quota of 0 is "not set", -1 is "unlimited"; shares and period of 0 are "not set";
//! - a swappiness of 0 is "not set", so the cgroup keeps its parent's;
//! - an `oomScoreAdj` always comes back as a value: 0 and "not set" both mean 0 in the guest, where
//!   inheriting the agent's own score would be wrong;
//! - a device rule without major or minor number is -1, which agents read as "any", when its type is `b`
//!   or `c`, and 0 when its type is `a` or unset, where agents expect 0:0.
//!
//! # What the wire has no field for
//!
//! [`not_carried`] lists the parts of a configuration that are set and get lost on the way.

mod container;
mod dropped;
mod error;
mod linux;
mod process;
mod resources;
mod seccomp;
mod value;

pub use container::{spec_from_wire, spec_to_wire};
pub use dropped::not_carried;
pub use error::ConvertError;
pub use process::{process_from_wire, process_to_wire, unknown_capabilities};
pub use resources::{CGROUP_FILES, resources_from_wire, resources_to_wire};
