//! The shim's own behaviour.

use std::time::Duration;

use crate::choice::InternetworkingModel;

/// `[runtime]`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// The shim logs at debug level.
    pub debug: bool,
    /// How the pod's network interfaces reach the guest.
    pub internetworking_model: InternetworkingModel,
    /// Containers' seccomp profiles are not applied inside the guest.
    pub disable_guest_seccomp: bool,
    /// Everything that belongs to a pod runs in the pod's own cgroup.
    pub sandbox_cgroup_only: bool,
    /// How long the creation of a container inside the guest may take.
    pub create_container_timeout: Duration,
}
