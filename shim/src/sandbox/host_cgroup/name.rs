//! Which cgroup of the host is a sandbox's.

use std::path::{Component, Path, PathBuf};

/// What is in it is of sandboxes, and limited by nobody.
pub(super) const OVERHEAD: &str = "kata_overhead";
/// Where systemd puts what names no slice.
const DEFAULT_SLICE: &str = "system.slice";

/// The cgroup of sandbox `id`, below the root of a hierarchy: beside the one that containerd means for the container
/// the sandbox is made for, and so within the pod's. `path` is a path, or systemd's `slice:prefix:name`.
pub(super) fn of(path: Option<&Path>, id: &str) -> PathBuf {
    let text = path.unwrap_or(Path::new("")).to_string_lossy();
    match text.split(':').collect::<Vec<_>>()[..] {
        [slice, _prefix, _name] => slices(slice).join(format!("kata-{id}.scope")),
        _ => {
            let parent = Path::new(&*text).parent().unwrap_or(Path::new(""));
            let plain = parent.components().filter(|part| matches!(part, Component::Normal(_)));
            plain.collect::<PathBuf>().join(format!("kata_{id}"))
        }
    }
}

/// The cgroup of what is not to count as the pod's.
pub(super) fn overhead(id: &str) -> PathBuf {
    Path::new(OVERHEAD).join(id)
}

/// The directory of a slice, which is in those that its name begins with: `a-b.slice` in `a.slice`.
fn slices(name: &str) -> PathBuf {
    let name = if name.is_empty() { DEFAULT_SLICE } else { name };
    let stem = name.strip_suffix(".slice").unwrap_or(name);
    let words: Vec<&str> = stem.split('-').filter(|word| !word.is_empty() && !word.contains('/')).collect();
    (1..=words.len()).map(|count| format!("{}.slice", words[..count].join("-"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: &str) -> String {
        of(Some(Path::new(path)), "s1").display().to_string()
    }

    #[test]
    fn c24_a_sandbox_is_beside_its_container() {
        assert_eq!(named("/kubepods/burstable/pod1/s1"), "kubepods/burstable/pod1/kata_s1");
        assert_eq!(named("/default/s1"), "default/kata_s1");
        for bare in ["", "/", "s1", "/s1"] {
            assert_eq!(named(bare), "kata_s1", "{bare:?}");
        }
        assert_eq!(of(None, "s1"), Path::new("kata_s1"));
        assert_eq!(named("/a/../../b/s1"), "a/b/kata_s1", "never above the hierarchy");
    }

    #[test]
    fn c24_systemds_names_are_directories_too() {
        assert_eq!(
            named("kubepods-burstable-pod1.slice:cri-containerd:s1"),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/kata-s1.scope"
        );
        assert_eq!(named(":cri-containerd:s1"), "system.slice/kata-s1.scope");
        assert_eq!(named("-.slice:cri:s1"), "kata-s1.scope");
        assert_eq!(named("../x-y.slice:cri:s1"), "y.slice/kata-s1.scope");
    }
}
