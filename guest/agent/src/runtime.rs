//! Containers and their processes: the [`first`] of each, and those that [`join`] it, each by one fork of the agent; or by
//! [`library`], in a worker. [`spec`] and [`nodes`] only compute.

mod child;
pub(crate) mod first;
mod fork;
mod home;
pub(crate) mod join;
pub(crate) mod library;
mod namespaces;
pub(crate) mod nodes;
mod privileges;
mod program;
pub(crate) mod spec;
mod sysctl;
pub(crate) mod users;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{fcntl::OFlag, unistd::pipe2};
use oci_spec::runtime::Spec;

use crate::{error::Error, files, id::Id};

/// Where bundles are, and, by the host's conventions, everything that comes from it.
pub(crate) const BUNDLES: &str = "/run/kata-containers";

/// What a process says on the pipe of its [`Failure`] right before it executes its program.
pub(crate) const EXECUTES: u8 = 0;

/// Where a process between clone and exec says why it cannot go on. It is closed by a successful exec.
pub(crate) struct Failure {
    pub(crate) reader: OwnedFd,
    pub(crate) writer: OwnedFd,
}

impl Failure {
    pub(crate) fn new() -> Result<Self, Error> {
        let (reader, writer) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(Error::system("make a pipe to a process"))?;
        Ok(Self { reader, writer })
    }
}

/// The bundle directory of a container.
pub(crate) fn bundle(id: &Id) -> PathBuf {
    Path::new(BUNDLES).join(id)
}

/// The working directory is made if the image lacks it, as runc does. A root that cannot be written to says
/// so when the process gets there.
fn make_working_dir(spec: &Spec) {
    if let (Some(root), Some(process)) = (spec.root(), spec.process())
        && process.cwd() != Path::new("/")
    {
        let _ = files::make_dirs(root.path(), process.cwd());
    }
}
