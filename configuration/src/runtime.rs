//! The shim's own behaviour.

use std::time::Duration;

use crate::choice::InternetworkingModel;

/// `[runtime]`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// The shim logs at debug level.
    pub debug: bool,
    /// Containers' seccomp profiles are not applied inside the guest.
    pub disable_guest_seccomp: bool,
    /// The SELinux label of containers in the guest that have one on the host; empty leaves them that.
    pub guest_selinux_label: String,
    /// How long the creation of a container inside the guest may take.
    pub create_container_timeout: Duration,
    /// How the pod's network reaches the guest.
    pub internetworking_model: InternetworkingModel,
    /// The virtual machine has from its start on what is known to be needed, and stays so.
    pub static_resources: bool,
    /// Everything of a sandbox is in a cgroup of its own, in the pod's.
    pub sandbox_cgroup_only: bool,
}
