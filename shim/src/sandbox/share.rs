//! The host directory a sandbox's guest sees.
//!
//! Containers' root filesystems and volumes are mounted below `share/mounts`, which only the shim can change. The
//! guest is given `share/shared`: a read-only view of it that follows new mounts (a slave of its propagation), so
//! that a guest can write into what is mounted there but cannot plant anything between the mounts.
//!
//! Where nothing is shared the guest gets copies ([`copies`]).

mod content;
pub(crate) mod copies;
mod follow;

use std::{
    fs,
    path::{Path, PathBuf},
};

use agent_client::AgentClient;
use configuration::BindMount;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use slog::Logger;
use vmm::VmSpec;

use copies::Copies;

use crate::error::{Error, Result};

/// The tag both kinds of share carry, and where the guest mounts it.
pub(crate) const TAG: &str = "kataShared";
pub(crate) const GUEST_DIR: &str = "/run/kata-containers/shared/containers";

/// Where in it a guest finds what the operator shows to all of them.
const SHOWN: &str = "sandbox-mounts";

/// How a guest comes by files of the host's.
pub(crate) enum HostFiles {
    Shared(SharedTree),
    Copied(Box<Copies>),
}

impl HostFiles {
    /// Those of the guest that `agent` is in, which sees `tree`, if there is one.
    pub(super) fn of(tree: Option<SharedTree>, agent: &AgentClient, log: &Logger) -> HostFiles {
        let copied = || HostFiles::Copied(Box::new(Copies::new(agent.clone(), log.clone())));
        tree.map_or_else(copied, HostFiles::Shared)
    }

    /// Unmounts what there is; it does no harm to do so again.
    pub(super) fn unmount(&self) {
        if let HostFiles::Shared(tree) = self {
            tree.unmount();
        }
    }
}

/// The shared tree of one sandbox; dropped, it and everything mounted in it is unmounted.
pub(crate) struct SharedTree {
    mounts: PathBuf,
    shared: PathBuf,
    /// What the operator shows to every guest.
    shown: Vec<Mounted>,
}

impl SharedTree {
    /// Makes the tree below the run directory of a machine, if that has a share, with these files and directories of the
    /// host's in it.
    ///
    /// # Errors
    /// As of [`Self::create`].
    pub(crate) fn of(machine: &VmSpec, run_dir: &Path, shown: &[BindMount]) -> Result<Option<SharedTree>> {
        machine.share.as_ref().map(|_| SharedTree::create(run_dir, shown)).transpose()
    }

    /// Makes the tree below the run directory, with these files and directories of the host's in it.
    ///
    /// # Errors
    /// Names the directory and what the kernel refused.
    fn create(run_dir: &Path, shown: &[BindMount]) -> Result<SharedTree> {
        let [mounts, shared] = places(run_dir);
        let mut tree = SharedTree { mounts, shared, shown: Vec::new() };
        for dir in [&tree.mounts, &tree.shared] {
            fs::create_dir_all(dir).map_err(Error::io(dir.display()))?;
        }
        bind(&tree.mounts, &tree.mounts)?;
        change(&tree.mounts, MsFlags::MS_SHARED)?;
        bind(&tree.mounts, &tree.shared)?;
        change(&tree.shared, MsFlags::MS_SLAVE)?;
        change(&tree.shared, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY)?;
        tree.show(shown)?;
        Ok(tree)
    }

    fn show(&mut self, mounts: &[BindMount]) -> Result<()> {
        if !mounts.is_empty() {
            let dir = self.mounts.join(SHOWN);
            fs::create_dir(&dir).map_err(Error::io(dir.display()))?;
        }
        for mount in mounts {
            let name = format!("{SHOWN}/{}", mount.name);
            let attached = self.attach(&mount.source, &name, true, mount.read_only)?;
            self.shown.push(attached);
        }
        Ok(())
    }

    /// Goes along with its run directory, which has this name now, and shows these files and directories, too.
    ///
    /// # Errors
    /// Names the directory and what the kernel refused.
    pub(crate) fn follow(&mut self, run_dir: &Path, shown: &[BindMount]) -> Result<()> {
        [self.mounts, self.shared] = places(run_dir);
        self.show(shown)
    }

    /// What of a run directory QEMU or virtiofsd serves to the guest.
    pub(crate) fn exported_of(run_dir: &Path) -> PathBuf {
        let [_, shared] = places(run_dir);
        shared
    }

    /// What QEMU or virtiofsd serves to the guest.
    pub(crate) fn exported(&self) -> &Path {
        &self.shared
    }

    /// Makes the directory a container's root filesystem is mounted on.
    ///
    /// # Errors
    /// Names the directory.
    pub(crate) fn rootfs_target(&self, container: &str) -> Result<Mounted> {
        let target = self.mounts.join(container).join("rootfs");
        fs::create_dir_all(&target).map_err(Error::io(target.display()))?;
        Ok(Mounted { target, guest_path: format!("{GUEST_DIR}/{container}/rootfs") })
    }

    /// Shows a host file or directory to the guest under `name`.
    ///
    /// # Errors
    /// Names the source when it is not there or cannot be shared.
    pub(crate) fn attach(
        &self,
        source: &Path,
        name: &str,
        recursive: bool,
        read_only: bool,
    ) -> Result<Mounted> {
        let target = self.mounts.join(name);
        let metadata = fs::metadata(source)
            .map_err(|error| Error::InvalidArgument(format!("mount source {}: {error}", source.display())))?;
        stub(&target, metadata.is_dir())?;
        let attached = Mounted { target, guest_path: format!("{GUEST_DIR}/{name}") };
        let staged =
            if read_only { Some(self.stage(source, name, metadata.is_dir(), recursive)?) } else { None };
        let from = staged.as_ref().map_or(source, |staged| staged.target.as_path());
        bind_all(from, &attached.target, recursive)?;
        // What a guest does to its view must not travel back to the host's mounts.
        change(&attached.target, MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
        Ok(attached)
    }

    /// Makes a read-only view of `source` beside the tree. A mount takes its flags along when it is bound, and so
    /// do the copies that appear in the exported view; made read-only afterwards, those would stay writable.
    fn stage(&self, source: &Path, name: &str, is_dir: bool, recursive: bool) -> Result<Mounted> {
        let target = self.mounts.with_file_name(format!("staged-{}", name.replace('/', "-")));
        stub(&target, is_dir)?;
        let staged = Mounted { target, guest_path: String::new() };
        bind_all(source, &staged.target, recursive)?;
        change(&staged.target, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY)?;
        Ok(staged)
    }
}

impl SharedTree {
    /// Unmounts the tree and everything in it; it does no harm to do so again.
    pub(crate) fn unmount(&self) {
        unmount(&self.shared);
        unmount(&self.mounts);
    }
}

impl Drop for SharedTree {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// One mount point below the tree, with its name in the guest; dropped, it is unmounted and removed.
pub(crate) struct Mounted {
    pub(crate) target: PathBuf,
    pub(crate) guest_path: String,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.target);
        // Never more than the stub itself: a target that still is a mount point, or is not empty, stays.
        if fs::remove_dir(&self.target).is_err()
            && fs::metadata(&self.target).is_ok_and(|file| file.len() == 0)
        {
            let _ = fs::remove_file(&self.target);
        }
        if let Some(parent) =
            self.target.parent().filter(|parent| parent.file_name().is_none_or(|name| name != "mounts"))
        {
            let _ = fs::remove_dir(parent);
        }
    }
}

fn places(run_dir: &Path) -> [PathBuf; 2] {
    ["mounts", "shared"].map(|name| run_dir.join("share").join(name))
}

/// Makes an empty file or directory to mount on.
fn stub(path: &Path, is_dir: bool) -> Result<()> {
    let made = if is_dir { fs::create_dir(path) } else { fs::File::create_new(path).map(drop) };
    made.map_err(Error::io(path.display()))
}

fn bind_all(source: &Path, target: &Path, recursive: bool) -> Result<()> {
    let flags = if recursive { MsFlags::MS_BIND | MsFlags::MS_REC } else { MsFlags::MS_BIND };
    mount(Some(source), target, None::<&str>, flags, None::<&str>)
        .map_err(Error::os(format_args!("mount source {}", source.display())))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(Error::os(to.display()))
}

fn change(path: &Path, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>).map_err(Error::os(path.display()))
}

/// Detaches at once, so that a busy or hanging filesystem holds nobody up, and never follows a link.
fn unmount(path: &Path) {
    while umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs `test` on a thread with mounts of its own.
    fn with_private_mounts(test: impl FnOnce(&Path) + Send + 'static) {
        let body = move || {
            let dir = tempfile::tempdir().unwrap();
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            test(dir.path());
        };
        std::thread::spawn(body).join().unwrap();
    }

    #[test]
    fn the_guest_sees_what_is_attached_and_can_plant_nothing_beside_it() {
        with_private_mounts(|dir| {
            let volume = dir.join("volume");
            fs::create_dir(&volume).unwrap();
            fs::write(volume.join("file"), "data").unwrap();
            let tree = SharedTree::create(&dir.join("run"), &[]).unwrap();
            let attached = tree.attach(&volume, "v", true, false).unwrap();
            let seen = tree.exported().join("v/file");
            assert_eq!(fs::read_to_string(&seen).unwrap(), "data");
            fs::write(&seen, "changed").unwrap();
            assert!(fs::write(tree.exported().join("planted"), "x").is_err());
            drop(attached);
            assert!(!tree.exported().join("v").exists());
            assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "changed");
        });
    }

    #[test]
    fn read_only_is_enforced_on_the_host() {
        with_private_mounts(|dir| {
            let file = dir.join("file");
            fs::write(&file, "data").unwrap();
            let tree = SharedTree::create(&dir.join("run"), &[]).unwrap();
            let _attached = tree.attach(&file, "f", false, true).unwrap();
            assert!(fs::write(tree.exported().join("f"), "x").is_err());
            assert_eq!(fs::read_to_string(file).unwrap(), "data");
        });
    }

    #[test]
    fn what_the_operator_shows_to_every_guest_is_there_from_the_start() {
        with_private_mounts(|dir| {
            let (certs, state) = (dir.join("certs"), dir.join("state"));
            for made in [&certs, &state] {
                fs::create_dir(made).unwrap();
                fs::write(made.join("file"), "data").unwrap();
            }
            let mount = |source: &Path, read_only| {
                let name = source.file_name().unwrap().to_str().unwrap().to_owned();
                BindMount { source: source.to_owned(), name, read_only }
            };
            let run = dir.join("run");
            let tree = SharedTree::create(&run, &[mount(&certs, true), mount(&state, false)]).unwrap();
            let seen = |name: &str| tree.exported().join("sandbox-mounts").join(name).join("file");
            assert_eq!(fs::read_to_string(seen("certs")).unwrap(), "data");
            assert!(fs::write(seen("certs"), "x").is_err());
            fs::write(seen("state"), "changed").unwrap();
            assert_eq!(fs::read_to_string(state.join("file")).unwrap(), "changed");
            drop(tree);
            super::super::run_dir::remove(&run).unwrap();
            assert!(certs.join("file").exists() && !run.exists());
            let gone = SharedTree::create(&run, &[mount(&dir.join("no"), true)]).err().unwrap().to_string();
            assert!(gone.contains("/no"), "{gone}");
        });
    }

    #[test]
    fn dropping_the_tree_leaves_directories_that_can_be_removed() {
        with_private_mounts(|dir| {
            let run = dir.join("ns/run");
            let tree = SharedTree::create(&run, &[]).unwrap();
            fs::create_dir(dir.join("v")).unwrap();
            fs::write(dir.join("v/precious"), "data").unwrap();
            std::mem::forget(tree.attach(&dir.join("v"), "v", true, false).unwrap());
            drop(tree);
            super::super::run_dir::remove(&run).unwrap();
            assert!(!run.exists());
            assert_eq!(fs::read_to_string(dir.join("v/precious")).unwrap(), "data");
        });
    }
}
