//! The world around the shim, in the process of the test: containerd's end of the events, a hypervisor without
//! machines, and a guest agent that does as the test says. What lies between is the real thing: sockets, ttrpc, the
//! run directory and its mounts.

mod calls;
mod containerd;
mod guest;
mod host;
mod machine;
mod pod;
mod stage;

pub(crate) use host::Host;
pub(crate) use machine::{Boot, FakeHypervisor};
pub(crate) use pod::Pod;
pub(crate) use stage::{Shim, code, later, on_fakes, settled, soon, words};
