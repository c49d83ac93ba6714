//! The hypervisor that is QEMU.

mod boot;

pub use boot::Qemu;
