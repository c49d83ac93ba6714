//! A running virtual machine.
//!
//! ```text
//! VmSpec --qemu/command.rs--> arguments --child.rs--> QEMU and its helpers --qemu/qmp.rs--> a running guest
//!                                                          | any of them gone, or the guest stuck
//!                                                          v
//!                                                       VmExit
//! ```
//!
//! Everything that [`Hypervisor::boot`] starts is owned by the [`Vm`] it returns, and by the pending call until then:
//! dropping either kills every process of the machine. The processes are children of the calling *thread* as far as
//! the kernel's parent-death signal goes, so a program that wants them to outlive a thread boots on its main one.

pub mod accelerator;
pub mod huge_pages;
pub mod plug;
pub mod protection;
pub mod spec;
pub mod vfio;

mod child;
mod console;
mod device;
mod error;
mod exit;
mod identity;
mod kernel_params;
mod lines;
mod memory_file;
mod nydusd;
mod paths;
mod processes;
mod qemu;
mod random;
mod record;
mod run_dir;
mod selinux;
mod ticks;
mod user;
mod virtiofsd;
mod vm;
mod vsock;

/// What strangers may say, for libFuzzer.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::qemu::fuzzing::qmp;
    pub use crate::vsock::fuzzing::vsock;
}

pub use error::{BootError, NydusdError, PathError, PathProblem, QmpError, StopError, Unwell};
pub use exit::{How, VmExit, Who};
pub use identity::{Process, children_of};
pub use memory_file::make_sparse;
pub use nydusd::MOUNT_POINT as NYDUSD_MOUNT_POINT;
pub use qemu::Qemu;
pub use record::{Record, RecordedMachine, sweep};
pub use spec::VmSpec;
pub use vm::{Connection, Hypervisor, Listener, Stream, VcpuThread, Vm, Vsock};
pub use vsock::VHOST_VSOCK;

/// The oldest release of QEMU that is tested.
pub const OLDEST_QEMU: &str = "7.2";
/// The newest release of QEMU that is tested.
pub const NEWEST_QEMU: &str = "10.0";
