//! Namespaces that the containers of a pod share, kept alive by bind mounts of their files: a path under
//! `/proc/<pid>` could come to mean another process.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{Pid, sethostname},
};

use crate::{error::chain, runtime::spec::Shared};

/// Where the files are.
const DIR: &str = "/run/agent/namespaces";

/// The pod's namespaces for interprocess communication and for its host name. Runs in a worker, since it
/// enters them.
pub(crate) fn make(hostname: &str) -> Result<String, String> {
    fs::create_dir_all(DIR).map_err(|error| format!("make {DIR}: {error}"))?;
    unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .map_err(|error| format!("make the pod's namespaces: {error}"))?;
    if !hostname.is_empty() {
        sethostname(hostname).map_err(|error| format!("set host name {hostname:?}: {error}"))?;
    }
    for kind in ["ipc", "uts"] {
        pin(Path::new("/proc/self/ns"), kind)?;
    }
    Ok(String::new())
}

/// Where [`make`] has put them.
pub(crate) fn made(hostname: &str) -> Shared {
    let uts = (!hostname.is_empty()).then(|| (path("uts"), hostname.to_owned()));
    Shared { ipc: Some(path("ipc")), uts, pid: None }
}

/// Keeps the process namespace that `init` has made.
pub(crate) fn pin_pid(init: Pid) -> Result<PathBuf, String> {
    fs::create_dir_all(DIR).map_err(|error| format!("make {DIR}: {error}"))?;
    pin(&Path::new("/proc").join(init.to_string()).join("ns"), "pid")?;
    Ok(path("pid"))
}

/// Lets go of all of them.
pub(crate) fn release() {
    for kind in ["ipc", "uts", "pid"] {
        // Not mounted is as good.
        let _ = umount2(&path(kind), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let _ = fs::remove_file(path(kind));
    }
}

fn path(kind: &str) -> PathBuf {
    Path::new(DIR).join(kind)
}

fn pin(from: &Path, kind: &str) -> Result<(), String> {
    let target = path(kind);
    let refused =
        |error: &dyn std::error::Error| format!("keep the pod's {kind} namespace: {}", chain(error));
    File::create(&target).map_err(|error| refused(&error))?;
    mount(Some(&from.join(kind)), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| refused(&error))
}
