//! The privileges a container's process gives up, in their order.
//!
//! Without `no_new_privileges` a filter of system calls has to be in place before the capability to install it is gone;
//! with it the filter comes last, so that it need not allow what only we call.

use libcontainer::{
    capabilities::{drop_privileges, reset_effective},
    seccomp::initialize_seccomp,
    syscall::Syscall,
};
use nix::sys::prctl;
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Process, Spec};

use crate::error::chain;

pub(super) struct Privileges<'a> {
    capabilities: LinuxCapabilities,
    filter: Option<&'a LinuxSeccomp>,
    no_new: bool,
}

impl<'a> Privileges<'a> {
    /// The capabilities are the process' own, the filter is its container's.
    pub(super) fn of(process: &Process, container: &'a Spec) -> Self {
        Self {
            capabilities: process.capabilities().clone().unwrap_or_default(),
            filter: container.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()),
            no_new: process.no_new_privileges().unwrap_or(false),
        }
    }

    /// No program gets more of them than it is given, if that is asked for.
    pub(super) fn none_anew(&self) -> Result<(), String> {
        if !self.no_new {
            return Ok(());
        }
        prctl::set_no_new_privs().map_err(|error| format!("set no_new_privs: {error}"))
    }

    /// What goes before the program is looked for, which is found as its user would find it where that is possible.
    pub(super) fn before_looking(&self, system: &dyn Syscall) -> Result<(), String> {
        // A change of user takes them out of effect.
        reset_effective(system).map_err(|error| format!("restore capabilities: {}", chain(&error)))?;
        if self.filter_first() { Ok(()) } else { self.drop_capabilities(system) }
    }

    /// What goes when it is found. From here on the process waits to be let go, with no more than its program will have.
    pub(super) fn before_waiting(&self, system: &dyn Syscall) -> Result<(), String> {
        if self.filter_first() {
            self.install().and_then(|()| self.drop_capabilities(system))
        } else {
            Ok(())
        }
    }

    /// What goes right before the program is executed.
    pub(super) fn at_last(&self) -> Result<(), String> {
        if self.filter_first() { Ok(()) } else { self.install() }
    }

    fn install(&self) -> Result<(), String> {
        let Some(filter) = self.filter else { return Ok(()) };
        initialize_seccomp(filter)
            .map(drop)
            .map_err(|error| format!("install the seccomp filter: {}", chain(&error)))
    }

    fn filter_first(&self) -> bool {
        self.filter.is_some() && !self.no_new
    }

    fn drop_capabilities(&self, system: &dyn Syscall) -> Result<(), String> {
        drop_privileges(&self.capabilities, system)
            .map_err(|error| format!("drop capabilities: {}", chain(&error)))
    }
}
