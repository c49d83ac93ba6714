//! What a volume of a container is in the guest: a directory of the host's, or memory of the guest's own.
//!
//! Memory that containers of a pod share is the guest's, as the host's would neither be counted there nor be mapped by
//! several of its processes at once.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use agent_protocol::agent::Storage;
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, statfs};

use crate::error::{Error, Result};

/// Where containers expect shared memory.
const SHM: &str = "/dev/shm";
/// What a container gets of it whose host's is no file system of its own, in bytes.
const SHM_SIZE: u64 = 64 << 20;
/// Where the guest keeps what its containers share.
const GUEST_DIR: &str = "/run/kata-containers/sandbox";
/// The directory of kubelet's in which the emptyDirs of a pod are, by their names.
const EMPTY_DIRS: &str = "kubernetes.io~empty-dir";

/// The storage that the guest has instead of the bind mount of `source` on `destination`, or nothing where it is to see
/// the host's files.
///
/// # Errors
/// `InvalidArgument` that names a source that is not there.
pub(super) fn of_the_guest(source: &Path, destination: &Path) -> Result<Option<Storage>> {
    if destination == Path::new(SHM) {
        return Ok(Some(shared_memory(source)));
    }
    let Some(name) = empty_dir(source) else { return Ok(None) };
    let wrong = |error: &dyn std::fmt::Display| {
        Error::InvalidArgument(format!("mount source {}: {error}", source.display()))
    };
    let file_system = statfs(source).map_err(|error| wrong(&error))?;
    let directory = fs::metadata(source).map_err(|error| wrong(&error))?;
    let size = file_system.blocks().saturating_mul(file_system.block_size().unsigned_abs());
    let mut options = vec![
        format!("mode={:o}", directory.permissions().mode() & 0o7777),
        format!("uid={}", directory.uid()),
        format!("gid={}", directory.gid()),
        format!("size={size}"),
    ];
    let kind = match file_system.filesystem_type() {
        TMPFS_MAGIC => "tmpfs",
        HUGETLBFS_MAGIC => {
            options.push(format!("pagesize={}", file_system.block_size()));
            "hugetlbfs"
        }
        FsType(_) => return Ok(None),
    };
    Ok(Some(memory(&format!("ephemeral/{name}"), kind, options)))
}

/// All containers of a pod have the same.
fn shared_memory(source: &Path) -> Storage {
    let own = statfs(source).ok().filter(|file_system| file_system.filesystem_type() == TMPFS_MAGIC);
    let size = own.map(|own| own.blocks().saturating_mul(own.block_size().unsigned_abs()));
    let size = size.filter(|size| *size > 0).unwrap_or(SHM_SIZE);
    let options = ["noexec", "nosuid", "nodev", "mode=1777"].map(str::to_owned);
    memory("shm", "tmpfs", options.into_iter().chain([format!("size={size}")]).collect())
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

/// The name of the emptyDir that `source` is.
pub(super) fn empty_dir(source: &Path) -> Option<&str> {
    let is_one = source.parent()?.file_name()? == EMPTY_DIRS;
    source.file_name()?.to_str().filter(|_| is_one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d14_shared_memory_is_the_guests_and_as_large_as_the_hosts() {
        let host = statfs(Path::new(SHM)).unwrap();
        let size = host.blocks() * u64::try_from(host.block_size()).unwrap();
        let storage = of_the_guest(Path::new(SHM), Path::new(SHM)).unwrap().unwrap();
        assert_eq!((storage.driver.as_str(), storage.fstype.as_str()), ("ephemeral", "tmpfs"));
        assert!(storage.options.contains(&format!("size={size}")), "{:?}", storage.options);
        let elsewhere = of_the_guest(Path::new("/proc"), Path::new(SHM)).unwrap().unwrap();
        assert!(elsewhere.options.contains(&"size=67108864".to_owned()), "{:?}", elsewhere.options);
    }

    #[test]
    fn d15_an_empty_dir_of_memory_is_the_guests_and_one_on_a_disk_the_hosts() {
        let memory = tempfile::tempdir_in(SHM).unwrap();
        let disk = tempfile::tempdir_in("/var/tmp").unwrap();
        let storage = |dir: &Path| {
            let volume = dir.join("pods/7/volumes").join(EMPTY_DIRS).join("cache");
            fs::create_dir_all(&volume).unwrap();
            fs::set_permissions(&volume, fs::Permissions::from_mode(0o2775)).unwrap();
            std::os::unix::fs::chown(&volume, None, Some(4242)).unwrap();
            of_the_guest(&volume, Path::new("/cache")).unwrap()
        };
        let of_memory = storage(memory.path()).unwrap();
        assert_eq!(of_memory.mount_point, "/run/kata-containers/sandbox/ephemeral/cache");
        for option in ["mode=2775", "uid=0", "gid=4242"] {
            assert!(of_memory.options.contains(&option.to_owned()), "{:?}", of_memory.options);
        }
        assert_eq!(storage(disk.path()), None);
        assert_eq!(of_the_guest(memory.path(), Path::new("/cache")).unwrap(), None, "no emptyDir");
    }

    #[test]
    fn an_empty_dir_that_is_not_there_is_refused_by_its_source() {
        let source = Path::new("/nonexistent").join(EMPTY_DIRS).join("cache");
        let error = of_the_guest(&source, Path::new("/cache")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/"), "{error}");
    }
}
