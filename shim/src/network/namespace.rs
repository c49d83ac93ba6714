//! The pod's network namespace.

use std::{
    fs::{self, File, Metadata},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use netlink::{LinkChange, Netlink};
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where a thread's namespace is.
const OWN: &str = "/proc/thread-self/ns/net";

/// Where those of the shim and of the host's first process are. One of them may be in another than the host's, as in a
/// container, or cannot be looked at.
const HOSTS: [&str; 2] = ["/proc/self/ns/net", "/proc/1/ns/net"];

/// What tells one namespace from another that is at the same path later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of the namespace at `path`, if there is one.
    pub(super) fn at(path: &Path) -> Option<Identity> {
        fs::metadata(path).ok().map(|metadata| Identity::of(&metadata))
    }

    fn of(metadata: &Metadata) -> Identity {
        Identity { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Whether it is no pod's own.
    pub(super) fn is_the_hosts(self) -> bool {
        HOSTS.iter().filter_map(|host| Identity::at(Path::new(host))).any(|host| host == self)
    }
}

/// Where the namespace is that containers are to have, if it is there already.
pub(crate) fn path_in(spec: &Spec) -> Option<PathBuf> {
    asked_for(spec)?.path().clone().filter(|path| !path.as_os_str().is_empty())
}

/// Whether containers are to have one of their own.
pub(super) fn is_asked_for(spec: &Spec) -> bool {
    asked_for(spec).is_some()
}

fn asked_for(spec: &Spec) -> Option<&LinuxNamespace> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
}

/// Takes this thread into the namespace at `path`, for as long as the thread lives.
///
/// # Errors
/// `InvalidArgument` for what is no network namespace, or cannot be entered.
pub(super) fn enter(path: &Path) -> Result<Identity> {
    let refused = |why: &dyn std::fmt::Display| {
        Error::InvalidArgument(format!("network namespace {}: {why}", path.display()))
    };
    let file = File::open(path).map_err(|error| refused(&error))?;
    let metadata = file.metadata().map_err(|error| refused(&error))?;
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|error| refused(&error.desc()))?;
    Ok(Identity::of(&metadata))
}

/// The namespace that this thread is in, for other threads.
///
/// # Errors
/// What the kernel refused.
pub(super) fn own() -> Result<File> {
    File::open(OWN).map_err(Error::io(OWN))
}

/// Takes this thread into a namespace of [`own`]'s.
///
/// # Errors
/// What the kernel refused.
pub(super) fn enter_again(namespace: impl AsFd) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| Error::io("network namespace")(error.into()))
}

/// Takes this thread into a network namespace of its own, with a loopback that is up. It ends with the last of who is in
/// it and of what refers to it, as the connection does that is returned.
///
/// # Errors
/// What the kernel refused.
pub(super) fn enter_new() -> io::Result<Netlink> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut netlink = Netlink::open()?;
    let loopback = netlink.links()?.into_iter().find(|link| link.is_loopback);
    if let Some(loopback) = loopback {
        netlink.change_link(loopback.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    }
    Ok(netlink)
}
