//! How to talk to the guest.

use std::time::Duration;

/// `[agent.kata]`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The agent logs at debug level.
    pub debug: bool,
    /// Kernel modules the guest loads before the first container starts.
    pub kernel_modules: Vec<KernelModule>,
    /// The agent offers a shell on its debug console.
    pub debug_console: bool,
    /// How long the guest may take from the start of QEMU until its agent answers.
    pub dial_timeout: Duration,
}

/// A kernel module and its parameters, as `modprobe` takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelModule {
    /// The module's name.
    pub name: String,
    /// Parameters such as `debug=1`.
    pub parameters: Vec<String>,
}
