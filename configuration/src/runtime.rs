//! The shim's own behaviour.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::choice::{InternetworkingModel, VfioMode};
use crate::program::reason;

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
    /// Who connects to localhost in the pod's network namespace on the host reaches the guest's.
    pub forwards_ports: bool,
    /// The virtual machine has from its start on what is known to be needed, and stays so.
    pub static_resources: bool,
    /// What of the host every guest sees.
    pub bind_mounts: Vec<BindMount>,
    /// Everything of a sandbox is in a cgroup of its own, in the pod's.
    pub sandbox_cgroup_only: bool,
    /// Each virtual CPU is bound to one of the CPUs that containers' sets of CPUs have, if there are as many.
    pub pins_vcpus: bool,
    /// A pod's emptyDir volumes of disks are in the root file system of its own container.
    pub guest_empty_dirs: bool,
    /// What a container has of the devices of the host that it is given.
    pub vfio_mode: VfioMode,
}

/// A file or directory of the host's that guests see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// Where it is, an absolute path.
    pub source: PathBuf,
    /// What it is called beside the others.
    pub name: String,
    /// Guests cannot write there.
    pub read_only: bool,
}

impl BindMount {
    /// Reads a path with, maybe, `:ro` or `:rw` behind it.
    pub(crate) fn parse(text: &str) -> Result<BindMount, String> {
        let (path, read_only) = match text.rsplit_once(':') {
            Some((path, "rw")) => (path, false),
            Some((path, "ro")) => (path, true),
            _ => (text, true),
        };
        let source = PathBuf::from(path);
        if !source.is_absolute() {
            return Err(format!("{text:?} is not an absolute path"));
        }
        let name = source.file_name().and_then(|name| name.to_str());
        let name =
            name.ok_or_else(|| format!("{text:?} has no name at its end that guests could see it by"))?;
        let found = fs::metadata(&source).map_err(|error| format!("{path}: {}", reason(&error)))?;
        if !found.is_dir() && !found.is_file() {
            return Err(format!("{path} is neither a file nor a directory"));
        }
        Ok(BindMount { name: name.to_owned(), source, read_only })
    }
}
