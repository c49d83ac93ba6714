//! The hypervisor that is QEMU.

mod boot;
mod command;
mod dump;
mod machine;
mod monitor;
mod plug;
mod qmp;

pub use boot::Qemu;
#[cfg(fuzzing)]
pub use qmp::fuzzing;
