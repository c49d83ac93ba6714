//! The root file system of the guest.
//!
//! The kernel unpacks the initramfs into a root that `pivot_root` refuses to leave. The guest therefore
//! moves to a tmpfs first, so that containers are pivoted into their root and can never climb back.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    unistd::{chdir, chroot},
};

use crate::error::Error;

/// Where the next root is put together.
const NEW_ROOT: &str = "/newroot";

/// What of the initramfs is still of use, where it has it: kernel modules, and hooks where Kata's images have them.
const KEPT: [&str; 2] = ["/lib/modules", "/usr/share/oci/hooks"];

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const NOTHING_SPECIAL: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const MOUNTS: &[Mount] = &[
    Mount { kind: "proc", target: "proc", flags: NOTHING_SPECIAL, data: "" },
    Mount { kind: "sysfs", target: "sys", flags: NOTHING_SPECIAL, data: "" },
    Mount { kind: "cgroup2", target: "sys/fs/cgroup", flags: NOTHING_SPECIAL, data: "nsdelegate" },
    Mount { kind: "devtmpfs", target: "dev", flags: MsFlags::MS_NOSUID, data: "mode=755" },
    Mount {
        kind: "devpts",
        target: "dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "gid=5,mode=620,ptmxmode=666",
    },
    Mount { kind: "tmpfs", target: "dev/shm", flags: NO_DEVICES, data: "mode=1777" },
    Mount { kind: "tmpfs", target: "run", flags: NO_DEVICES, data: "mode=755" },
    Mount { kind: "tmpfs", target: "tmp", flags: NO_DEVICES, data: "mode=1777" },
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
];

/// Mounts the next root and everything in it, and has it share the initramfs' kernel modules.
pub(super) fn new_root() -> Result<(), Error> {
    let root = Path::new(NEW_ROOT);
    make_mount("tmpfs", root, MsFlags::empty(), "mode=755")?;
    for entry in MOUNTS {
        make_mount(entry.kind, &root.join(entry.target), entry.flags, entry.data)?;
    }
    let etc = root.join("etc");
    fs::create_dir(&etc).map_err(Error::system("make /etc"))?;
    for (to, link) in LINKS {
        // devtmpfs of some kernels has them.
        let _ = symlink(to, root.join(link));
    }
    KEPT.iter().try_for_each(|kept| keep(Path::new(kept), root))
}

/// What is used on demand stays where the kernel unpacked it; a bind mount keeps it in reach.
fn keep(directory: &Path, root: &Path) -> Result<(), Error> {
    if !directory.is_dir() {
        return Ok(());
    }
    let what = || format!("keep {}", directory.display());
    let target = root.join(directory.strip_prefix("/").unwrap_or(directory));
    fs::create_dir_all(&target).map_err(Error::system(what()))?;
    mount(Some(directory), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(Error::system(what()))
}

fn make_mount(kind: &str, target: &Path, flags: MsFlags, data: &str) -> Result<(), Error> {
    let what = || format!("mount {kind} on {}", target.display());
    fs::create_dir_all(target).map_err(Error::system(what()))?;
    mount(Some(kind), target, Some(kind), flags, Some(data)).map_err(Error::system(what()))
}

/// Gives the initramfs' memory back and makes the next root the root.
pub(super) fn enter_new_root() -> Result<(), Error> {
    empty_initramfs();
    chdir(NEW_ROOT).map_err(Error::system("enter the new root"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(Error::system("move the new root to /"))?;
    chroot(".").map_err(Error::system("change root"))?;
    chdir("/").map_err(Error::system("enter /"))
}

/// The agent's own file goes too; its pages stay for as long as it runs.
fn empty_initramfs() {
    let Ok(root) = fs::metadata("/").map(|root| root.dev()) else { return };
    if let Err(error) = remove_tree(Path::new("/"), root) {
        ::log::warn!("empty the initramfs: {error}");
    }
}

fn remove_tree(dir: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.dev() != device || KEPT.iter().any(|kept| entry.path() == Path::new(kept)) {
            continue;
        }
        if meta.is_dir() {
            remove_tree(&entry.path(), device)?;
            // Not empty where something is kept or mounted.
            let _ = fs::remove_dir(entry.path());
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_mounted_before_what_is_in_them() {
        for (index, entry) in MOUNTS.iter().enumerate() {
            let later = MOUNTS[index + 1..].iter().map(|other| other.target);
            assert!(later.clone().all(|other| !entry.target.starts_with(&format!("{other}/"))));
        }
    }

    #[test]
    fn a_tree_is_emptied_to_the_last_file() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/c"), "x").unwrap();
        symlink("/nowhere", root.path().join("link")).unwrap();
        remove_tree(root.path(), fs::metadata(root.path()).unwrap().dev()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_on_another_device_is_touched() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        remove_tree(root.path(), u64::MAX).unwrap();
        assert!(root.path().join("file").exists());
    }
}
