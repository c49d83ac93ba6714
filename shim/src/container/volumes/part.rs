//! A subPath of an emptyDir, as kubelet prepares it: the part of the volume is bound to
//! `pods/<uid>/volume-subpaths/<volume>/<container>/<number>`, and that is what the container's mount is of.
//!
//! Which part it is the kernel tells: its table of mounts has, for each, what of a file system is there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    EMPTY_DIRS,
    table::{self, Mount},
};

/// Where kubelet has the parts of a pod's volumes.
const PARTS: &str = "volume-subpaths";

/// A directory in an emptyDir.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The emptyDir, on the host.
    pub(super) volume: PathBuf,
    pub(super) inner: PathBuf,
}

/// The emptyDir of whose parts `source` would be one, by its name.
pub(super) fn volume_of(source: &Path) -> Option<PathBuf> {
    let mut above = source.ancestors().skip(2);
    let (volume, parts, pod) = (above.next()?, above.next()?, above.next()?);
    let volume = pod.join("volumes").join(EMPTY_DIRS).join(volume.file_name()?);
    (parts.file_name()? == PARTS).then_some(volume)
}

/// The part of an emptyDir that the directory `source` is.
pub(super) fn at(source: &Path) -> Option<Part> {
    let volume = volume_of(source)?;
    // The table has no links in its paths.
    let (real_source, real_volume) = (fs::canonicalize(source).ok()?, fs::canonicalize(&volume).ok()?);
    let inner = inner(&table::read().ok()?, &real_source, &real_volume)?;
    real_source.is_dir().then_some(Part { volume, inner })
}

/// Where in `volume` that is what is bound to `source`.
fn inner(table: &str, source: &Path, volume: &Path) -> Option<PathBuf> {
    let mounts: Vec<_> = table::mounts(table).collect();
    let ((device, source), (of_volume, volume)) = (origin(&mounts, source)?, origin(&mounts, volume)?);
    let inner = source.strip_prefix(volume).ok().filter(|_| device == of_volume)?;
    (!inner.as_os_str().is_empty()).then(|| inner.to_owned())
}

/// The device that a path is on, and where in its file system.
fn origin<'a>(mounts: &[Mount<'a>], path: &Path) -> Option<(&'a str, PathBuf)> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    // Of two mounts on one directory the later one is seen.
    let mount = above.max_by_key(|mount| mount.point.components().count())?;
    Some((mount.device, mount.root.join(path.strip_prefix(&mount.point).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "/var/lib/kubelet/pods/7";
    const MOUNTS: &str = "\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
40 21 0:50 / /var/lib/kubelet/pods/7/volumes/kubernetes.io~empty-dir/cache rw shared:1 - tmpfs tmpfs rw
41 21 0:50 /a\\040b/sub /var/lib/kubelet/pods/7/volume-subpaths/cache/one/0 rw shared:1 - tmpfs tmpfs rw
42 21 8:1 /var/lib/kubelet/pods/7/volumes/kubernetes.io~empty-dir/disk/sub /var/lib/kubelet/pods/7/volume-subpaths/disk/one/1 rw - ext4 /dev/sda1 rw
43 21 0:51 / /var/lib/kubelet/pods/7/volume-subpaths/cache/one/2 rw - tmpfs tmpfs rw
44 21 0:50 / /var/lib/kubelet/pods/7/volume-subpaths/cache/one/3 rw - tmpfs tmpfs rw
";

    fn part(name: &str) -> Option<PathBuf> {
        let source = Path::new(POD).join(PARTS).join(name);
        inner(MOUNTS, &source, &volume_of(&source)?)
    }

    #[test]
    fn d15_the_kernel_tells_which_part_of_a_volume_is_bound() {
        assert_eq!(part("cache/one/0").as_deref(), Some(Path::new("a b/sub")));
        assert_eq!(part("disk/one/1").as_deref(), Some(Path::new("sub")));
    }

    #[test]
    fn what_is_no_part_of_the_volume_it_is_called_after_is_none() {
        for (name, why) in [
            ("cache/one/2", "another file system"),
            ("cache/one/3", "all of it"),
            ("disk/one/0", "nothing is bound there"),
            ("none/one/0", "there is no such volume"),
        ] {
            assert_eq!(part(name), None, "{why}");
        }
    }

    #[test]
    fn a_volume_is_known_by_where_kubelet_has_its_parts() {
        let volume = volume_of(Path::new("/k/pods/7/volume-subpaths/cache/one/0"));
        assert_eq!(volume.as_deref(), Some(Path::new("/k/pods/7/volumes/kubernetes.io~empty-dir/cache")));
        for other in ["/", "/srv", "/k/pods/7/volumes/cache/one/0", "/volume-subpaths/cache/one"] {
            assert_eq!(volume_of(Path::new(other)), None, "{other}");
        }
    }
}
