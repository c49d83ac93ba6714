//! Namespaces that the containers of a pod share, kept alive by bind mounts of their files: a path under
//! `/proc/<pid>` could come to mean another process.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    unistd::{Pid, sethostname},
};

use crate::{error::chain, runtime::spec::Shared};

/// Where the files are.
const DIR: &str = "/run/agent/namespaces";

/// Where the kernel shows those of the agent.
const SELF: &str = "/proc/self/ns";

/// The pod's namespaces for interprocess communication and for its host name. The agent enters them and comes back,
/// which is quicker than a worker that does; it is of no consequence to anybody, as the agent has one thread.
pub(crate) fn make(hostname: &str) -> Result<Shared, String> {
    fs::create_dir_all(DIR).map_err(|error| format!("make {DIR}: {error}"))?;
    let refused = |error: &dyn std::error::Error| format!("make the pod's namespaces: {error}");
    let own = Own::remember().map_err(|error| refused(&error))?;
    unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).map_err(|error| refused(&error))?;
    let made = fill(hostname);
    own.enter().map_err(|error| refused(&error))?;
    made
}

fn fill(hostname: &str) -> Result<Shared, String> {
    if !hostname.is_empty() {
        sethostname(hostname).map_err(|error| format!("set host name {hostname:?}: {error}"))?;
    }
    for kind in ["ipc", "uts"] {
        pin(Path::new(SELF), kind)?;
    }
    let uts = (!hostname.is_empty()).then(|| (path("uts"), hostname.to_owned()));
    Ok(Shared { ipc: Some(path("ipc")), uts, pid: None })
}

/// The namespaces of the agent that [`make`] leaves for a while.
struct Own([File; 2]);

impl Own {
    fn remember() -> io::Result<Self> {
        let open = |kind| File::open(Path::new(SELF).join(kind));
        Ok(Self([open("ipc")?, open("uts")?]))
    }

    fn enter(&self) -> nix::Result<()> {
        self.0.iter().try_for_each(|namespace| setns(namespace, CloneFlags::empty()))
    }
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
