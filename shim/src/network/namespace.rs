//! The pod's network namespace.

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What tells one namespace from another that is at the same path later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

/// Where the namespace is that containers are to have, if it is there already.
pub(super) fn path_in(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let network = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?;
    network.path().clone().filter(|path| !path.as_os_str().is_empty())
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
    Ok(Identity { device: metadata.dev(), inode: metadata.ino() })
}
