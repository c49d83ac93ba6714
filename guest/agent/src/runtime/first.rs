//! The first process of a container, and with it the container.
//!
//! One fork of the agent becomes it: born in the container's cgroup and process namespace, it makes the other namespaces
//! and the root, says that it is there, and executes its program when it is let go. Mounts and devices are libcontainer's
//! to make; the rest of its way, for which it takes two processes more, files and sockets, is gone only where it has to be
//! (see [`super::library`] and docs/decisions/0011).

use std::{
    convert::Infallible,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::Path,
};

use libcontainer::{
    rootfs::RootFS,
    syscall::{Syscall, syscall::create_syscall},
    validator::Validator,
};
use nix::{
    mount::{MsFlags, mount},
    sched::CloneFlags,
    sys::statvfs::{FsFlags, statvfs},
    unistd::{Pid, read, sethostname, setsid, write},
};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount, Spec};

use super::{
    child::{Child, said, told},
    fork::{Within, fork_into, live},
    make_working_dir, namespaces, sysctl,
};
use crate::{
    cgroup::Cgroup,
    error::{Error, chain},
    stdio::ChildStdio,
    worker,
};

/// Where a container has its devices.
const DEVICES: &str = "/dev";

/// What becomes the first process of a container.
pub(crate) struct First<'a> {
    /// Of no other process yet, with its limits.
    pub(crate) cgroup: &'a Cgroup,
    /// As [`super::spec::adapt`] leaves it. Changed by the child for itself.
    pub(crate) spec: &'a mut Spec,
    /// A terminal is made in the container and sent to this socket.
    pub(crate) stdio: ChildStdio<OwnedFd>,
    /// The writing end of [`super::Failure`]. It closes as the program is executed.
    pub(crate) failure: OwnedFd,
    /// A byte goes out when the container is there; the program runs when one comes in.
    pub(crate) gate: UnixStream,
}

impl First<'_> {
    /// Starts the process, a child of the agent, and returns its id. What keeps it from making the container or from
    /// executing its program it says on `failure`.
    pub(crate) fn start(self) -> Result<Pid, Error> {
        let refused = |what: &str| Error::system(format!("make a container: {what}"));
        let shared = namespaces::shared(self.spec, LinuxNamespaceType::Pid).map(File::open).transpose();
        let shared = shared.map_err(refused("open the pod's process namespace"))?;
        let own = namespaces::has(self.spec, LinuxNamespaceType::Pid) && shared.is_none();
        let born_in = if own { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
        let within = shared.map(|shared| Within::enter(&shared)).transpose();
        let within = within.map_err(refused("enter the pod's process namespace"))?;
        let forked =
            fork_into(self.cgroup.path(), born_in).map_err(Error::system("make a container: fork"))?;
        if let Some(pid) = forked {
            drop(within);
            return Ok(pid);
        }
        let Self { spec, stdio, failure, gate, .. } = self;
        live(&failure, || {
            let mut kept = stdio.fds();
            kept.extend([gate.as_raw_fd(), failure.as_raw_fd()]);
            worker::leave_the_agent(kept).map_err(said("leave the agent"))?;
            Making { spec, stdio: &stdio, gate: &gate, failure: &failure }.make()
        })
    }
}

/// The child's view of it.
struct Making<'a> {
    spec: &'a mut Spec,
    stdio: &'a ChildStdio<OwnedFd>,
    gate: &'a UnixStream,
    failure: &'a OwnedFd,
}

impl Making<'_> {
    /// Returns only with what went wrong.
    fn make(&mut self) -> Result<Infallible, String> {
        let system = create_syscall();
        sysctl::apply_network(self.spec)?;
        Validator::validate_spec(self.spec).map_err(told("the configuration"))?;
        make_working_dir(self.spec);
        let process = self.spec.process().as_ref().ok_or("spec.process: missing")?;
        let linux = self.spec.linux().as_ref().ok_or("spec.linux: missing")?;
        let child = Child { process, container: self.spec, stdio: self.stdio };
        child.limits(system.as_ref())?;
        check_sources(self.spec)?;
        namespaces::make(self.spec)?;
        self.name()?;
        sysctl::apply_own(linux)?;
        setsid().map_err(said("begin a session"))?;
        self.enter_root(linux, system.as_ref())?;
        if let Some(terminal) = child.streams()? {
            mount_console(&terminal, system.as_ref())?;
        }
        self.protect(linux, system.as_ref())?;
        let ready = child.ready(system.as_ref())?;
        self.wait()?;
        ready.execute(self.failure, system.as_ref())
    }

    /// A host name of its own.
    fn name(&self) -> Result<(), String> {
        let own = namespaces::has(self.spec, LinuxNamespaceType::Uts)
            && namespaces::shared(self.spec, LinuxNamespaceType::Uts).is_none();
        match self.spec.hostname() {
            Some(name) if own => sethostname(name).map_err(said(&format!("set host name {name:?}"))),
            _ => Ok(()),
        }
    }

    fn enter_root(&self, linux: &Linux, system: &dyn Syscall) -> Result<(), String> {
        let root = self.spec.root().as_ref().ok_or("spec.root: missing")?.path();
        let root = fs::canonicalize(root).map_err(said(&format!("find the root {}", root.display())))?;
        let rootfs = RootFS::new();
        let made = if has_others_devices(self.spec) {
            rootfs.mount_to_rootfs(linux, self.spec, &root, true)
        } else {
            rootfs.prepare_rootfs(self.spec, &root, false, true)
        };
        made.map_err(told("make the root"))?;
        system.pivot_rootfs(&root).map_err(told("enter the root"))?;
        rootfs.adjust_root_mount_propagation(linux).map_err(told("set the propagation of mounts"))
    }

    /// What of the root the container may not write to, and what it may not see.
    fn protect(&self, linux: &Linux, system: &dyn Syscall) -> Result<(), String> {
        if self.spec.root().as_ref().is_some_and(|root| root.readonly().unwrap_or(false)) {
            remount_readonly(Path::new("/"), MsFlags::empty()).map_err(said("remount the root read-only"))?;
        }
        if devices_of(self.spec).any(|mount| mount.options().iter().flatten().any(|option| option == "ro")) {
            // The library leaves it writable, for what is made in it.
            remount_readonly(Path::new(DEVICES), MsFlags::empty())
                .map_err(said(&format!("remount {DEVICES} read-only")))?;
        }
        for path in linux.readonly_paths().iter().flatten() {
            make_readonly(Path::new(path)).map_err(said(&format!("make {path} read-only")))?;
        }
        let Some(masked) = linux.masked_paths().as_ref().filter(|paths| !paths.is_empty()) else {
            return Ok(());
        };
        let null = null_device().map_err(said("open /dev/null"))?;
        masked.iter().try_for_each(|path| {
            mask(Path::new(path), &null, system).map_err(|why| format!("mask {path}: {why}"))
        })
    }

    /// Until it is let go.
    fn wait(&self) -> Result<(), String> {
        write(self.gate, &[1]).map_err(said("tell that the container is there"))?;
        match read(self.gate, &mut [0]) {
            Ok(1) => Ok(()),
            _ => Err("given up before its program ran".to_owned()),
        }
    }
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// Whether its [`DEVICES`] are a directory of somebody else's, who would find what is made in it: no devices are, nor links.
fn has_others_devices(spec: &Spec) -> bool {
    devices_of(spec).any(is_bind)
}

/// What is mounted for its devices.
fn devices_of(spec: &Spec) -> impl Iterator<Item = &Mount> {
    spec.mounts().iter().flatten().filter(|mount| mount.destination() == Path::new(DEVICES))
}

/// The library does not say which of them it did not find.
fn check_sources(spec: &Spec) -> Result<(), String> {
    spec.mounts().iter().flatten().filter(|mount| is_bind(mount)).try_for_each(|mount| match mount.source() {
        Some(source) => fs::metadata(source).map(drop).map_err(said(&format!(
            "mount {} on {}",
            source.display(),
            mount.destination().display()
        ))),
        None => Err(format!("mount on {}: source: missing", mount.destination().display())),
    })
}

/// In the container's own root, and on nothing that a link of the image leads to.
fn mount_console(terminal: &OwnedFd, system: &dyn Syscall) -> Result<(), String> {
    const CONSOLE: &str = "/dev/console";
    let mut target = File::options();
    // Whatever an image has there is not opened.
    target.create_new(true).write(true).mode(0o666);
    match target.open(CONSOLE) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(said(&format!("make {CONSOLE}"))(error));
        }
        _ => {}
    }
    system
        .mount_from_fd(terminal, Path::new(CONSOLE))
        .map_err(told(&format!("mount the terminal on {CONSOLE}")))
}

/// A path that is not there needs no protection.
fn make_readonly(path: &Path) -> io::Result<()> {
    match mount(Some(path), path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>) {
        Err(nix::Error::ENOENT) => Ok(()),
        bound => bound.map_err(io::Error::from).and_then(|()| {
            remount_readonly(path, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC)
        }),
    }
}

/// Keeps the flags that the mount has, and adds to them.
fn remount_readonly(path: &Path, more: MsFlags) -> io::Result<()> {
    let has = statvfs(path)?.flags();
    let kept = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept: MsFlags =
        kept.into_iter().filter(|(flag, _)| has.contains(*flag)).map(|(_, flag)| flag).collect();
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    Ok(mount(None::<&str>, path, None::<&str>, flags | kept | more, None::<&str>)?)
}

/// Hides a file behind /dev/null and a directory behind an empty one.
fn mask(path: &Path, null: &OwnedFd, system: &dyn Syscall) -> Result<(), String> {
    match fs::metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(())
        }
        Err(error) => Err(error.to_string()),
        Ok(meta) if meta.is_dir() => {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>)
                .map_err(|error| error.to_string())
        }
        Ok(_) => system.mount_from_fd(null, path).map_err(|error| chain(&error)),
    }
}

/// The container's own, which has to be one, or what is masked by it would be anything.
fn null_device() -> io::Result<OwnedFd> {
    let null = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open("/dev/null")?;
    let meta = null.metadata()?;
    if !meta.file_type().is_char_device() || meta.rdev() != libc::makedev(1, 3) {
        return Err(io::Error::other("it is no null device"));
    }
    Ok(null.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_in_a_directory_that_is_bound_for_devices() {
        let has = |mount: &str| {
            let spec = format!(r#"{{"ociVersion": "1.0.2", "mounts": [{mount}]}}"#);
            has_others_devices(&serde_json::from_str(&spec).unwrap())
        };
        for bound in [
            r#"{"destination": "/dev", "type": "bind", "source": "/dev"}"#,
            r#"{"destination": "/dev/", "source": "/srv", "options": ["rbind", "ro"]}"#,
        ] {
            assert!(has(bound), "{bound}");
        }
        for own in [
            r#"{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}"#,
            r#"{"destination": "/dev/shm", "type": "bind", "source": "/srv", "options": ["bind"]}"#,
            r#"{"destination": "/host/dev", "type": "bind", "source": "/dev", "options": ["bind"]}"#,
        ] {
            assert!(!has(own), "{own}");
        }
    }
}
