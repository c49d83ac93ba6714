//! What a sandbox may leave behind, and the search for it.
//!
//! Every case has a containerd namespace of its own, whose name is found nowhere else on the machine. So whatever
//! carries that name after the case is a leak.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::{Result, check, eventually};

/// How long a teardown may take after containerd was told that the task is gone (it ends with `Shutdown`).
pub(crate) const SETTLE: Duration = Duration::from_secs(15);

/// Where containerd and this project's shim keep the sockets of shims.
const SHIM_SOCKETS: &str = "/run/containerd/s";

/// What one case may have left.
#[derive(Debug, Clone)]
pub struct Suspects {
    /// The containerd namespace, unique to the case.
    pub namespace: String,
    /// The address shims were given by `-address`; their sockets' names are made from it.
    pub address: PathBuf,
    /// The ids of all sandboxes of the case.
    pub ids: Vec<String>,
    /// Whether an empty cgroup of the namespace's name may stay, as runc leaves one.
    pub cgroup_may_stay: bool,
}

impl Suspects {
    /// Waits until nothing is left; fails with the list of what still is after 15 s.
    pub fn expect_nothing(&self) -> Result<()> {
        // No event tells that something of somebody else's is gone.
        eventually(SETTLE, || {
            let left = self.left();
            check!(left.is_empty(), "left behind: {}", left.join("; "));
            Ok(())
        })
    }

    /// Everything that is there right now.
    pub fn left(&self) -> Vec<String> {
        let mut left = self.processes_and_mounts();
        left.extend(self.directories());
        left.extend(self.sockets());
        left.extend(self.cgroups());
        left
    }

    fn processes_and_mounts(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut seen = HashSet::new();
        for process in entries(Path::new("/proc")).filter(|path| is_pid(path)) {
            let argv = fs::read(process.join("cmdline")).unwrap_or_default();
            let argv = String::from_utf8_lossy(&argv).replace('\0', " ");
            let cwd = fs::read_link(process.join("cwd")).unwrap_or_default();
            let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            if [argv.as_str(), &cwd.to_string_lossy(), &cgroup].iter().any(|text| self.names(text)) {
                left.push(format!("process {}: {argv}", process.display()));
            }
            let Ok(mounts_of) = fs::read_link(process.join("ns/mnt")) else { continue };
            if seen.insert(mounts_of) {
                let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
                let own = mounts.lines().filter(|line| self.names(line));
                left.extend(own.map(|line| format!("mount in {}: {line}", process.display())));
            }
        }
        left
    }

    fn directories(&self) -> Vec<String> {
        let run = Path::new("/run/kata").join(&self.namespace);
        let netns = entries(Path::new("/run/netns")).filter(|path| self.names(&path.to_string_lossy()));
        let state = self.address.parent().map(|dir| dir.join("state"));
        // Of tasks, and of sandboxes that containerd 2 makes by the Sandbox API.
        let makers = ["io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"];
        let of = |dir: PathBuf| makers.map(|maker| dir.join(maker).join(&self.namespace));
        let bundles = state.map(of).into_iter().flatten().flat_map(|dir| entries(&dir));
        let doors = entries(Path::new("/run/vc/sbs")).filter(|door| self.leads_to_ours(door));
        let all = run.exists().then_some(run).into_iter().chain(netns).chain(doors).chain(bundles);
        all.map(|path| format!("directory {}", path.display())).collect()
    }

    /// Where tools look for a sandbox; others may have one of that name.
    fn leads_to_ours(&self, door: &Path) -> bool {
        let target = fs::read_link(door.join("shim-monitor.sock")).unwrap_or_default();
        self.names(&target.to_string_lossy())
    }

    pub(crate) fn sockets(&self) -> Vec<String> {
        let names = self.ids.iter().map(|id| {
            let key = self.address.join(&self.namespace).join(id);
            let digest = Sha256::digest(key.as_os_str().as_bytes());
            digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        });
        let paths = names.map(|name| Path::new(SHIM_SOCKETS).join(name));
        paths.filter(|path| path.exists()).map(|path| format!("socket {}", path.display())).collect()
    }

    fn cgroups(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(dir) = todo.pop() {
            let own_name = dir.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
            let stays = self.cgroup_may_stay && own_name == self.namespace;
            if self.names(&own_name) && !stays {
                left.push(format!("cgroup {}", dir.display()));
            }
            let below = fs::read_dir(&dir).into_iter().flatten().flatten();
            let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            todo.extend(below.map(|entry| entry.path()));
        }
        left
    }

    /// Whether `text` has the namespace's name in it as a whole word: `kt-1-1` is not named by `kt-1-12`.
    fn names(&self, text: &str) -> bool {
        text.match_indices(&self.namespace).any(|(at, name)| {
            let next = text[at + name.len()..].chars().next();
            !next.is_some_and(|next| next.is_ascii_alphanumeric())
        })
    }
}

/// Removes the empty cgroups of a namespace that runc's shim leaves by design.
pub fn remove_empty_cgroups(namespace: &str) {
    for controller in entries(Path::new("/sys/fs/cgroup")) {
        let _ = fs::remove_dir(controller.join(namespace));
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn is_pid(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    fn suspects(namespace: &str) -> Suspects {
        Suspects {
            namespace: namespace.to_owned(),
            address: PathBuf::from("/nowhere/containerd.sock"),
            ids: vec!["box".to_owned()],
            cgroup_may_stay: false,
        }
    }

    #[test]
    fn a_namespace_is_named_only_as_a_whole_word() {
        let suspects = suspects("kt-1-1");
        assert!(suspects.names("/run/kata/kt-1-1/box"));
        assert!(suspects.names("-namespace kt-1-1 -id box"));
        assert!(!suspects.names("/run/kata/kt-1-12/box"));
    }

    #[test]
    fn a_process_is_found_by_its_arguments() {
        let namespace = format!("kt-leak-{}", std::process::id());
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; read line", &namespace])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // `spawn` returns in the midst of exec, before the kernel has set the new arguments; a word of the program
        // itself says that they are there.
        let mut ready = [0; 6];
        child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
        let left = suspects(&namespace).left();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(left.iter().any(|what| what.contains("process")), "{left:?}");
        assert!(suspects(&namespace).left().is_empty());
    }
}
