//! The cgroup (version 2) that holds all processes of one container.

pub(crate) mod devices;
pub(crate) mod stats;
pub(crate) mod unified;

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use libcgroups::{
    common::{CgroupManager, ControllerOpt},
    v2::manager::Manager,
};
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use oci_spec::runtime::LinuxResources;
use tokio::io::Interest;

use crate::{error::Error, id::Id, readiness};

/// Where the guest has the hierarchy mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// Parent of all containers' cgroups.
pub(crate) const PARENT: &str = "/sys/fs/cgroup/kata";

/// Leaves out what is not to be had anyway: nothing of a size of huge pages that this guest has none of. kubelet names all
/// sizes of its node.
pub(crate) fn without_absent_sizes(resources: &mut LinuxResources) {
    without_sizes(resources, |size| Path::new(PARENT).join(format!("hugetlb.{size}.max")).exists());
}

fn without_sizes(resources: &mut LinuxResources, is_there: impl Fn(&str) -> bool) {
    if let Some(limits) = resources.hugepage_limits_mut() {
        limits.retain(|limit| limit.limit() != 0 || is_there(limit.page_size()));
    }
}

/// The cgroup that holds a process.
pub(crate) fn of_process(pid: Pid) -> io::Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    path.map(|path| Path::new(ROOT).join(path)).ok_or_else(|| io::Error::other("no cgroup of version 2"))
}

/// How long freezing, or the end of killed processes, may take.
const SETTLE: Duration = Duration::from_secs(10);

/// The cgroup of one container.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn of(container: &Id) -> Self {
        Self { path: Path::new(PARENT).join(container) }
    }

    /// The path as an OCI configuration has it: from the root of the hierarchy.
    pub(crate) fn oci_path(container: &Id) -> PathBuf {
        Path::new("/kata").join(container)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, with its limits.
    pub(crate) fn make(&self, limits: Option<&LinuxResources>) -> Result<(), Error> {
        fs::create_dir_all(&self.path).map_err(Error::system(format!("make {}", self.path.display())))?;
        limits.map_or(Ok(()), |limits| self.update(limits))
    }

    /// Sends `signal`, which may be a real-time one, to every process in it. SIGKILL leaves no fork alive.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), Error> {
        if signal == libc::SIGKILL {
            return self.write("cgroup.kill", "1");
        }
        for pid in self.pids()? {
            match send(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(Error::system(format!("send signal {signal} to {pid}"))(error)),
            }
        }
        Ok(())
    }

    /// Every process in it, also those its processes have put into cgroups of their own.
    pub(crate) fn pids(&self) -> Result<Vec<Pid>, Error> {
        let mut pids = Vec::new();
        collect_pids(&self.path, &mut pids)
            .map_err(Error::system(format!("list the processes in {}", self.path.display())))?;
        Ok(pids)
    }

    /// Stops or continues all of it, and waits until the kernel has done so.
    pub(crate) async fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let value = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", value)?;
        let what = if frozen { "freeze" } else { "thaw" };
        self.settled(what, "frozen", value).await
    }

    /// Waits until no process is left.
    pub(crate) async fn emptied(&self) -> Result<(), Error> {
        self.settled("empty", "populated", "0").await
    }

    /// Waits for `key` of `cgroup.events` to have `value`; the kernel tells of every change.
    async fn settled(&self, what: &str, key: &str, value: &str) -> Result<(), Error> {
        let path = self.path.join("cgroup.events");
        let what = format!("{what} {}", self.path.display());
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(Error::system(what.clone()))?,
        };
        let events =
            readiness::watch(OwnedFd::from(file), Interest::PRIORITY).map_err(Error::system(what.clone()))?;
        let wait = async {
            loop {
                let text = fs::read_to_string(&path).unwrap_or_default();
                // A cgroup that is gone has settled, too.
                if text.is_empty() || stats::keyed(&text).any(|(k, v)| k == key && v == value) {
                    return Ok(());
                }
                events.ready(Interest::PRIORITY).await?.clear_ready();
            }
        };
        tokio::time::timeout(SETTLE, wait)
            .await
            .map_err(|_| Error::Timeout { what: what.clone(), after: SETTLE })?
            .map_err(|error: io::Error| Error::system(what)(error))
    }

    /// Applies new limits; those by the names of files come last, as with runc. They come first, too: a value that the kernel
    /// refuses is known of before anything else has changed.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        unified::check(resources)?;
        let mut plain = resources.clone();
        plain.set_unified(None);
        without_absent_sizes(&mut plain);
        let Some(files) = resources.unified() else { return self.apply(&plain) };
        let before = unified::write(&self.path, files)?;
        if let Err(error) = self.apply(&plain) {
            before.restore();
            return Err(error);
        }
        unified::write(&self.path, files).map(drop)
    }

    fn apply(&self, resources: &LinuxResources) -> Result<(), Error> {
        let relative = self.path.strip_prefix(ROOT).unwrap_or(&self.path).to_owned();
        let refused = |error: &dyn std::error::Error| {
            Error::Worker(format!("update {}: {}", self.path.display(), crate::error::chain(error)))
        };
        let manager = Manager::new(ROOT.into(), relative).map_err(|error| refused(&error))?;
        let options =
            ControllerOpt { resources, freezer_state: None, oom_score_adj: None, disable_oom_killer: false };
        manager.apply(&options).map_err(|error| refused(&error))
    }

    /// Removes it with all below it; it must be empty of processes. It not being there is fine.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove_tree(&self.path).map_err(Error::system(format!("remove {}", self.path.display())))
    }

    fn write(&self, file: &str, value: &str) -> Result<(), Error> {
        let path = self.path.join(file);
        fs::write(&path, value).map_err(Error::system(format!("write {value} to {}", path.display())))
    }
}

/// Sends a signal by number: the typed call knows no real-time signals.
pub(crate) fn send(pid: Pid, signal: i32) -> nix::Result<()> {
    if signal == 0 {
        return kill(pid, None);
    }
    // SAFETY: passes two numbers.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

fn collect_pids(dir: &Path, pids: &mut Vec<Pid>) -> io::Result<()> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    pids.extend(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw));
    for child in child_dirs(dir)? {
        match collect_pids(&child, pids) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match child_dirs(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        children => children?.iter().try_for_each(|child| remove_tree(child))?,
    }
    fs::remove_dir(dir)
}

fn child_dirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_in_nested_cgroups() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("cgroup.procs"), "1\n2\n").unwrap();
        fs::write(root.path().join("a/cgroup.procs"), "").unwrap();
        fs::write(root.path().join("a/b/cgroup.procs"), "30\n").unwrap();
        let cgroup = Cgroup { path: root.path().to_owned() };
        let mut pids: Vec<i32> = cgroup.pids().unwrap().into_iter().map(Pid::as_raw).collect();
        pids.sort_unstable();
        assert_eq!(pids, [1, 2, 30]);
    }

    #[test]
    fn nothing_of_a_size_of_huge_pages_that_is_not_there_is_no_limit() {
        let limit = |size: &str, limit: i64| serde_json::json!({"pageSize": size, "limit": limit});
        let all = [limit("2MB", 0), limit("64KB", 0), limit("1GB", 5)];
        let mut resources: LinuxResources =
            serde_json::from_value(serde_json::json!({ "hugepageLimits": all })).unwrap();
        without_sizes(&mut resources, |size| size == "2MB");
        let left: Vec<_> =
            resources.hugepage_limits().iter().flatten().map(|limit| limit.page_size().as_str()).collect();
        assert_eq!(left, ["2MB", "1GB"]);
    }

    #[test]
    fn removing_what_is_not_there_is_fine() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = Cgroup { path: root.path().join("none") };
        cgroup.remove().unwrap();
        fs::create_dir_all(root.path().join("none/a/b")).unwrap();
        cgroup.remove().unwrap();
        assert!(!root.path().join("none").exists());
    }
}
