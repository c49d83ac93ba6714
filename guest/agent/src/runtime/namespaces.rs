//! The namespaces in a container's configuration, as the kernel's flags.

use std::{fs::File, io, path::Path};

use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

fn listed(spec: &Spec) -> impl Iterator<Item = &LinuxNamespace> {
    spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten()
}

/// What a container has of its own or shares with its pod, and a process can enter. The network is the guest's.
pub(super) fn all(spec: &Spec) -> CloneFlags {
    listed(spec).map(|namespace| flag(namespace.typ())).collect()
}

/// Whether a container has one of that kind.
pub(super) fn has(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    listed(spec).any(|namespace| namespace.typ() == kind)
}

/// The file of the one of that kind that a container joins, if it does.
pub(super) fn shared(spec: &Spec, kind: LinuxNamespaceType) -> Option<&Path> {
    listed(spec).find(|namespace| namespace.typ() == kind)?.path().as_deref()
}

/// Joins what the container shares and makes the others, except that of processes, which its children are born in.
pub(super) fn make(spec: &Spec) -> Result<(), String> {
    let mut own = CloneFlags::empty();
    for namespace in listed(spec).filter(|namespace| namespace.typ() != LinuxNamespaceType::Pid) {
        match namespace.path() {
            Some(path) => {
                join(path).map_err(|error| format!("join the namespace {}: {error}", path.display()))?
            }
            None => own |= flag(namespace.typ()),
        }
    }
    unshare(own).map_err(|error| format!("make namespaces ({own:?}): {error}"))
}

fn join(path: &Path) -> io::Result<()> {
    Ok(setns(File::open(path)?, CloneFlags::empty())?)
}

fn flag(kind: LinuxNamespaceType) -> CloneFlags {
    match kind {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::Time => CloneFlags::from_bits_retain(libc::CLONE_NEWTIME),
    }
}
