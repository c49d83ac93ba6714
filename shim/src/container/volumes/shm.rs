//! Shared memory: which mounts at `/dev/shm` are the runtime's, and what the guest has instead.
//!
//! A volume may be mounted there, too, as is usual where 64 MiB do not suffice, and is that volume. What a runtime made for
//! a pod is a file system in memory that containerd, CRI-O and Docker all call `shm`, in a directory of that name. Taking a
//! volume for it would lose the volume's size and files, and taking it for a volume would share the host's memory, which
//! is not counted in the guest: so both have to be right.

use std::{ffi::OsStr, fs, path::Path};

use agent_protocol::agent::Storage;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::{memory, table};

/// Where containers expect it, and where the host has its own.
const PLACE: &str = "/dev/shm";
/// What runtimes call the pod's.
const NAME: &str = "shm";
/// The directory of containerd's with one for each pod.
const SANDBOXES: &str = "sandboxes";
/// What a container gets of it whose host's is no file system of its own, in bytes.
const SIZE: u64 = 64 << 20;

pub(in crate::container) fn is_at(destination: &Path) -> bool {
    destination == Path::new(PLACE)
}

/// All containers of a pod have the same, as large as the host's `source` if that is one.
pub(in crate::container) fn of_the_pod(source: &Path) -> Storage {
    of_the_guest(NAME, source)
}

/// What the guest has for a bind mount of `source` on `destination` that is shared memory and no volume.
pub(super) fn given(source: &Path, destination: &Path) -> Option<Storage> {
    if !is_at(destination) {
        return None;
    }
    if source == Path::new(PLACE) {
        // Not the pod's, whose size would be that of the container that comes first.
        return Some(of_the_guest("host-shm", source));
    }
    is_a_runtimes(source).then(|| of_the_pod(source))
}

fn of_the_guest(name: &str, source: &Path) -> Storage {
    let own = statfs(source).ok().filter(|file_system| file_system.filesystem_type() == TMPFS_MAGIC);
    let size = own.map(|own| own.blocks().saturating_mul(own.block_size().unsigned_abs()));
    let size = size.filter(|size| *size > 0).unwrap_or(SIZE);
    let options = ["noexec", "nosuid", "nodev", "mode=1777"].map(str::to_owned);
    memory(name, "tmpfs", options.into_iter().chain([format!("size={size}")]).collect())
}

fn is_a_runtimes(source: &Path) -> bool {
    if source.file_name() != Some(OsStr::new(NAME)) || super::is_empty_dir(source) {
        return false;
    }
    // containerd 1.7 names it, but does not make it, where pods are made by its Sandbox API.
    let is_containerds = source.ancestors().nth(2).and_then(Path::file_name) == Some(OsStr::new(SANDBOXES));
    let is_mounted = || {
        // The table has no links in its paths.
        let source = fs::canonicalize(source).ok()?;
        Some(is_memory(&table::read().ok()?, &source))
    };
    is_containerds || is_mounted().unwrap_or(false)
}

fn is_memory(table: &str, source: &Path) -> bool {
    // Of two mounts on one directory the later one is seen.
    let mount = table::mounts(table).rfind(|mount| mount.point == source);
    mount.is_some_and(|mount| mount.kind == "tmpfs" && mount.source == NAME && mount.root == Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(storage: &Storage) -> &str {
        storage.options.iter().find(|option| option.starts_with("size=")).unwrap()
    }

    #[test]
    fn d14_shared_memory_is_the_guests_and_as_large_as_the_hosts() {
        let host = statfs(Path::new(PLACE)).unwrap();
        let bytes = host.blocks() * u64::try_from(host.block_size()).unwrap();
        let hosts = given(Path::new(PLACE), Path::new(PLACE)).unwrap();
        assert_eq!((hosts.driver.as_str(), hosts.fstype.as_str()), ("ephemeral", "tmpfs"));
        assert_eq!(size(&hosts), format!("size={bytes}"));
        let not_made = Path::new("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/0123/shm");
        let pods = given(not_made, Path::new(PLACE)).unwrap();
        assert_eq!(size(&pods), "size=67108864");
        assert_ne!(pods.mount_point, hosts.mount_point, "the host's size is not the pod's");
        assert_eq!(given(not_made, Path::new("/memory")), None, "another place");
    }

    #[test]
    fn d14_what_runtimes_make_for_a_pod_is_told_from_volumes() {
        let table = "\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
40 21 0:50 / /run/containerd/io.containerd.grpc.v1.cri/sandboxes/1/shm rw shared:1 - tmpfs shm rw,size=65536k
41 21 0:51 / /run/containers/storage/overlay-containers/1/userdata/shm rw - tmpfs shm rw,size=65536k
42 21 0:52 / /var/lib/docker/containers/1/mounts/shm rw - tmpfs shm rw,size=65536k
43 21 0:53 / /mnt/shm rw - tmpfs tmpfs rw
44 21 0:52 /part /mnt/part/shm rw - tmpfs shm rw
45 21 0:54 / /mnt/disk/shm rw - ext4 shm rw
46 21 0:55 / /mnt/covered/shm rw - tmpfs shm rw
47 46 0:54 / /mnt/covered/shm rw - ext4 /dev/sdb rw
";
        let is_one = |source: &str| is_memory(table, Path::new(source));
        for runtime in [
            "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/1/shm",
            "/run/containers/storage/overlay-containers/1/userdata/shm",
            "/var/lib/docker/containers/1/mounts/shm",
        ] {
            assert!(is_one(runtime), "{runtime}");
        }
        for volume in ["/mnt/shm", "/mnt/part/shm", "/mnt/disk/shm", "/mnt/covered/shm", "/srv/shm"] {
            assert!(!is_one(volume), "{volume}");
        }
    }

    #[test]
    fn d14_a_volume_for_shared_memory_is_that_volume() {
        let dir = tempfile::tempdir_in(PLACE).unwrap();
        let volumes = dir.path().join("pods/7/volumes");
        for volume in ["kubernetes.io~empty-dir/shm", "kubernetes.io~empty-dir/dshm", "host/shm"] {
            let volume = volumes.join(volume);
            fs::create_dir_all(&volume).unwrap();
            assert_eq!(given(&volume, Path::new(PLACE)), None, "{}", volume.display());
        }
    }
}
