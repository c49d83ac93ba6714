//! The hypervisor that is QEMU.

mod balloon;
mod boot;
mod command;
mod connections;
mod dump;
mod health;
mod late;
mod machine;
mod monitor;
mod plug;
mod qmp;
mod state;
mod timer;

pub use boot::Qemu;
#[cfg(fuzzing)]
pub(crate) use qmp::fuzzing;
