//! Whether a process that has had mounts of its own for long sees those that came to the host since.

use std::path::{Path, PathBuf};

/// Whether what is mounted at or below `path` comes to copies of these mounts, by the kernel's `mountinfo` (proc(5)):
/// only where the mount that it is on is shared. One that but gets what comes to another hands on nothing of its own.
pub(super) fn reaches(mountinfo: &str, path: &Path) -> bool {
    let mounts = mountinfo.lines().filter_map(mount).filter(|(at, _)| path.starts_with(at));
    // Of several at the same place the last one is seen.
    mounts.max_by_key(|(at, _)| at.as_os_str().len()).is_some_and(|(_, propagates)| propagates)
}

fn mount(line: &str) -> Option<(PathBuf, bool)> {
    let (fields, _) = line.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(4);
    let at = fields.next()?.replace("\\040", " ");
    let mut tags = fields.skip(1);
    Some((at.into(), tags.any(|tag| tag.starts_with("shared:"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:25 / /run rw,nosuid shared:5 - tmpfs tmpfs rw
31 30 0:26 / /run/own rw - tmpfs tmpfs rw
32 27 0:27 / /srv/a\\040b rw master:7 - tmpfs tmpfs rw
";

    #[test]
    fn the_mount_that_a_path_is_on_decides() {
        for (path, reached) in [
            ("/var/lib/kubelet", true),
            ("/run/netns/one", true),
            ("/run/own/x", false),
            ("/run/ownx", true),
            ("/srv/a b/c", false),
        ] {
            assert_eq!(reaches(MOUNTS, Path::new(path)), reached, "{path}");
        }
        assert!(!reaches("27 1 254:0 / / rw - ext4 /dev/vda rw\n", Path::new("/run")));
    }
}
