//! The whole Task API on fakes: answers, refusals, and the events containerd gets for them.

mod copied;
mod deaths;
mod execs;
mod hooks;
mod host_devices;
mod kept;
mod keys;
mod lifecycle;
mod network;
mod pins;
mod ready;
mod resources;
mod sandboxes;
mod streams;
mod templates;
