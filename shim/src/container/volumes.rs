//! What a volume of a container is in the guest: a directory of the host's, or memory of the guest's own.
//!
//! Memory that containers of a pod share is the guest's, as the host's would neither be counted there nor be mapped by
//! several of its processes at once.

mod part;
mod shm;
mod table;

use std::{
    fs::{self, Metadata},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use agent_protocol::{
    agent::{FSGroup, Storage},
    types::FSGroupChangePolicy,
};
use nix::sys::{
    stat::Mode,
    statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, statfs},
};
use oci_spec::runtime::Spec;

use crate::error::{Error, Result};
use part::Part;
pub(super) use shm::{is_at as is_shared_memory, of_the_pod as shared_memory};

/// Where the guest keeps what its containers share.
const GUEST_DIR: &str = "/run/kata-containers/sandbox";
/// The directory of kubelet's in which the emptyDirs of a pod are, by their names.
const EMPTY_DIRS: &str = "kubernetes.io~empty-dir";

/// The agent's driver of storages that are parts of others.
pub(crate) const PARTS: &str = "sub-path";

/// What a guest keeps of its pod's volumes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keeping {
    /// Shared memory, for containers that would have some of their own, too.
    pub(crate) shared_memory: bool,
    /// Parts, as well as whole volumes: not every agent can.
    pub(crate) parts: bool,
    /// EmptyDirs on disks, in this directory of the guest's.
    pub(crate) empty_dirs: Option<String>,
}

impl Keeping {
    /// Whether parts of what the guest keeps are among a container's mounts.
    pub(crate) fn has_parts(&self, spec: &Spec) -> bool {
        let sources = spec.mounts().iter().flatten().filter_map(|mount| mount.source().as_deref());
        let mut volumes = sources.filter_map(part::volume_of);
        volumes.any(|volume| empty_dir(&volume, self).is_ok_and(|kept| kept.is_some()))
    }
}

/// The storages that the guest has for the bind mount of `source` on `destination`, which is then one of the last of them;
/// none where it is to see the host's files. No other mount has that `name`.
///
/// # Errors
/// `InvalidArgument` that names a source that is not there.
pub(super) fn of_the_guest(
    source: &Path,
    destination: &Path,
    name: &str,
    keeping: &Keeping,
) -> Result<Vec<Storage>> {
    if let Some(memory) = shm::given(source, destination) {
        return Ok(vec![memory]);
    }
    if is_empty_dir(source) {
        return Ok(empty_dir(source, keeping)?.into_iter().collect());
    }
    let Some(part) = part::at(source).filter(|_| keeping.parts) else { return Ok(Vec::new()) };
    let Some(volume) = empty_dir(&part.volume, keeping)? else { return Ok(Vec::new()) };
    let part = part_of(&volume, &part, source, name)?;
    Ok(vec![volume, part])
}

/// What is instead of an emptyDir.
fn empty_dir(source: &Path, keeping: &Keeping) -> Result<Option<Storage>> {
    let Some(name) = source.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
    let file_system = statfs(source).map_err(|error| wrong(source, &error))?;
    let kind = match file_system.filesystem_type() {
        TMPFS_MAGIC => "tmpfs",
        HUGETLBFS_MAGIC => "hugetlbfs",
        FsType(_) => return keeping.empty_dirs.as_ref().map(|dir| local(source, dir, name)).transpose(),
    };
    let mut options = access(source)?;
    let size = file_system.blocks().saturating_mul(file_system.block_size().unsigned_abs());
    let name = format!("ephemeral/{name}");
    if kind == "tmpfs" {
        options.push(format!("size={size}"));
        return Ok(Some(memory(&name, kind, options)));
    }
    options.push(format!("pagesize={}", file_system.block_size()));
    // kubelet sets none, which is told as none at all: a file system of that size would have no page.
    options.extend((size > 0).then(|| format!("size={size}")));
    let fs_group = group_of_new_files(&metadata(source)?).into();
    Ok(Some(Storage { fs_group, ..memory(&name, kind, options) }))
}

/// The group that kubelet gives a volume's new files to, for file systems whose option of that name knows no such mode.
fn group_of_new_files(directory: &Metadata) -> Option<FSGroup> {
    let gives = directory.permissions().mode() & Mode::S_ISGID.bits() != 0;
    gives.then(|| FSGroup {
        group_id: directory.gid(),
        group_change_policy: FSGroupChangePolicy::OnRootMismatch.into(),
        ..Default::default()
    })
}

/// A directory of the guest's. Agents of the field read the group by this name.
fn local(source: &Path, dir: &str, name: &str) -> Result<Storage> {
    let directory = metadata(source)?;
    let group = Some(directory.gid()).filter(|group| *group != 0).map(|group| format!("fsgid={group}"));
    Ok(Storage {
        driver: "local".into(),
        source: "local".into(),
        fstype: "local".into(),
        options: std::iter::once(mode(&directory)).chain(group).collect(),
        mount_point: format!("{dir}/{name}"),
        ..Default::default()
    })
}

/// A part of `volume`, mounted where no container reaches it, as containers may exchange what is in the volume.
fn part_of(volume: &Storage, part: &Part, source: &Path, name: &str) -> Result<Storage> {
    let inner = part.inner.to_str().ok_or_else(|| wrong(source, &"subPath: it is no text"))?;
    Ok(Storage {
        driver: PARTS.into(),
        driver_options: vec![inner.to_owned()],
        source: volume.mount_point.clone(),
        options: access(source)?,
        mount_point: format!("{GUEST_DIR}/parts/{name}"),
        ..Default::default()
    })
}

fn metadata(source: &Path) -> Result<Metadata> {
    fs::metadata(source).map_err(|error| wrong(source, &error))
}

fn mode(directory: &Metadata) -> String {
    format!("mode={:o}", directory.permissions().mode() & 0o7777)
}

/// Mode and owner of a directory of the host's, for one of the guest's.
fn access(source: &Path) -> Result<Vec<String>> {
    let directory = metadata(source)?;
    let (uid, gid) = (directory.uid(), directory.gid());
    Ok(vec![mode(&directory), format!("uid={uid}"), format!("gid={gid}")])
}

fn wrong(source: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("mount source {}: {error}", source.display()))
}

/// Memory of the guest's that it keeps as long as the pod.
pub(super) fn memory(name: &str, kind: &str, options: Vec<String>) -> Storage {
    Storage {
        driver: "ephemeral".into(),
        source: kind.into(),
        fstype: kind.into(),
        options,
        mount_point: format!("{GUEST_DIR}/{name}"),
        ..Default::default()
    }
}

fn is_empty_dir(source: &Path) -> bool {
    name_of_empty_dir(source).is_some()
}

/// Whether `source` is a part of an emptyDir, as kubelet mounts a subPath.
pub(super) fn is_part_of_empty_dir(source: &Path) -> bool {
    part::at(source).is_some_and(|part| is_empty_dir(&part.volume))
}

/// The name of the emptyDir that `source` is.
pub(super) fn name_of_empty_dir(source: &Path) -> Option<&str> {
    let is_one = source.parent()?.file_name()? == EMPTY_DIRS;
    source.file_name()?.to_str().filter(|_| is_one)
}

#[cfg(test)]
mod tests {
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };

    use super::*;

    /// A file system in memory.
    const SHM: &str = "/dev/shm";

    fn of_the_guest(source: &Path, destination: &Path) -> Result<Vec<Storage>> {
        super::of_the_guest(source, destination, "c1-0-x", &Keeping::default())
    }

    #[test]
    fn d15_an_empty_dir_of_memory_is_the_guests_and_one_on_a_disk_the_hosts() {
        let memory = tempfile::tempdir_in(SHM).unwrap();
        let disk = tempfile::tempdir_in("/var/tmp").unwrap();
        let storage = |dir: &Path, keeping: &Keeping| {
            let volume = dir.join("pods/7/volumes").join(EMPTY_DIRS).join("cache");
            fs::create_dir_all(&volume).unwrap();
            fs::set_permissions(&volume, fs::Permissions::from_mode(0o2775)).unwrap();
            std::os::unix::fs::chown(&volume, None, Some(4242)).unwrap();
            super::of_the_guest(&volume, Path::new("/cache"), "c1-0-cache", keeping).unwrap()
        };
        let of_memory = &storage(memory.path(), &Keeping::default())[0];
        assert_eq!(of_memory.mount_point, "/run/kata-containers/sandbox/ephemeral/cache");
        for option in ["mode=2775", "uid=0", "gid=4242"] {
            assert!(of_memory.options.contains(&option.to_owned()), "{:?}", of_memory.options);
        }
        assert_eq!(storage(disk.path(), &Keeping::default()), []);
        assert_eq!(of_the_guest(memory.path(), Path::new("/cache")).unwrap(), [], "no emptyDir");
        let keeping = Keeping { empty_dirs: Some("/guest/pod/rootfs/local".into()), ..Keeping::default() };
        let of_the_pod = &storage(disk.path(), &keeping)[0];
        assert_eq!(
            (of_the_pod.driver.as_str(), of_the_pod.mount_point.as_str()),
            ("local", "/guest/pod/rootfs/local/cache")
        );
        assert_eq!(of_the_pod.options, ["mode=2775", "fsgid=4242"]);
        assert_eq!(storage(memory.path(), &keeping)[0], *of_memory, "memory stays memory");
    }

    #[test]
    fn d14_an_empty_dir_of_memory_for_shared_memory_has_its_own_size() {
        let memory = tempfile::tempdir_in(SHM).unwrap();
        let volume = memory.path().join("pods/7/volumes").join(EMPTY_DIRS).join("shm");
        fs::create_dir_all(&volume).unwrap();
        let elsewhere = of_the_guest(&volume, Path::new("/cache")).unwrap();
        assert_eq!(of_the_guest(&volume, Path::new(SHM)).unwrap(), elsewhere);
        assert_eq!(elsewhere[0].mount_point, "/run/kata-containers/sandbox/ephemeral/shm");
        assert_eq!(of_the_guest(memory.path(), Path::new(SHM)).unwrap(), [], "files of the host's");
    }

    #[test]
    fn an_empty_dir_that_is_not_there_is_refused_by_its_source() {
        let source = Path::new("/nonexistent").join(EMPTY_DIRS).join("cache");
        let error = of_the_guest(&source, Path::new("/cache")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/"), "{error}");
    }

    #[test]
    fn d15_a_part_of_an_empty_dir_is_a_part_of_the_guests() {
        let memory = tempfile::tempdir_in(SHM).unwrap();
        let pod = memory.path().join("pods/7");
        let volume = pod.join("volumes").join(EMPTY_DIRS).join("cache");
        let source = pod.join("volume-subpaths/cache/one/0");
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::create_dir_all(&source).unwrap();
        fs::set_permissions(volume.join("a/b"), fs::Permissions::from_mode(0o750)).unwrap();
        let storages = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some(&volume.join("a/b")), &source, none, MsFlags::MS_BIND, none).unwrap();
            let with = |parts: bool| {
                let keeping = Keeping { parts, ..Keeping::default() };
                super::of_the_guest(&source, Path::new("/part"), "c1-0-part", &keeping).unwrap()
            };
            (with(true), with(false))
        });
        let (storages, without) = storages.join().unwrap();
        assert_eq!(without, [], "an agent that cannot leaves it to the host");
        let [volume, part] = &storages[..] else { panic!("{storages:?}") };
        assert_eq!(volume.mount_point, "/run/kata-containers/sandbox/ephemeral/cache");
        assert_eq!((&part.source, part.driver.as_str()), (&volume.mount_point, PARTS));
        assert_eq!(part.mount_point, "/run/kata-containers/sandbox/parts/c1-0-part");
        assert_eq!(
            (&part.driver_options[..], &part.options[0]),
            (&["a/b".to_owned()][..], &"mode=750".to_owned())
        );
    }

    /// kubelet sets no size.
    #[test]
    fn d15_an_empty_dir_of_huge_pages_is_as_large_as_the_kernel_has_some() {
        let memory = tempfile::tempdir_in(SHM).unwrap();
        let volume = memory.path().join(EMPTY_DIRS).join("huge");
        fs::create_dir_all(&volume).unwrap();
        let storage = |options: &'static str| {
            let volume = volume.clone();
            let mounted = std::thread::spawn(move || {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                let none = None::<&str>;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                mount(Some("nodev"), &volume, Some("hugetlbfs"), MsFlags::empty(), Some(options)).unwrap();
                fs::set_permissions(&volume, fs::Permissions::from_mode(0o2770)).unwrap();
                of_the_guest(&volume, Path::new("/huge")).unwrap().remove(0)
            });
            mounted.join().unwrap()
        };
        let huge = storage("pagesize=2M,gid=4242");
        assert_eq!(huge.fstype, "hugetlbfs");
        assert_eq!(huge.options, ["mode=2770", "uid=0", "gid=4242", "pagesize=2097152"]);
        assert_eq!(huge.fs_group.as_ref().map(|group| group.group_id), Some(4242), "of new files");
        assert_eq!(storage("pagesize=2M,size=4M").options[4], "size=4194304");
    }
}
