//! Volumes at places where a container has something anyway, and of places that the guest has, too.

use std::fs;
use std::path::Path;

use tests::pods::Pod;
use tests::{Context, Result, check, check_eq};

use super::{mount, read_only, volume, with};

/// What node exporters and storage drivers mount. `other` is a directory that has one file.
pub(super) fn d12_the_kernels_files_and_devices_are_the_guests(pod: &Pod<'_>, other: &Path) -> Result<()> {
    let host = |path: &str| read_only(Path::new(path), &format!("/host{path}"));
    let devices = read_only(Path::new("/dev"), "/dev");
    let id = with(pod, "node", vec![host("/proc"), host("/sys"), mount(Path::new("/sys"), "/sys"), devices])?;
    let boot = |root: &str| pod.sh(&id, &format!("cat {root}/proc/sys/kernel/random/boot_id"));
    check_eq!(boot("/host")?, boot("")?, "the kernel that the host's /proc is of");
    check_eq!(pod.sh(&id, "cat /host/proc/1/comm")?, "init", "the first process of the guest");
    check_eq!(
        pod.sh(&id, "ls /sys/class/net; ls /host/sys/class/net")?.matches("eth0").count(),
        2,
        "in /sys"
    );
    let seen = "test -c /dev/kmsg && test -c /dev/null && df /dev/shm | awk 'NR>1 {print $6}'";
    check_eq!(pod.sh(&id, seen)?, "/dev/shm", "the guest's devices");
    let written = pod.sh(&id, "touch /dev/file 2>&1 || echo -n yes > /dev/shm/file; cat /dev/shm/file")?;
    check!(written.contains("Read-only") && written.ends_with("yes"), "all but the mount itself: {written}");
    pod.end(&id)?;
    let refused = with(pod, "other", vec![mount(other, "/dev")]).err().context("a volume at /dev")?;
    check!(refused.to_string().contains("on /dev: it would hide the guest's devices"), "{refused}");
    check_eq!(fs::read_dir(other)?.count(), 1, "what is made in a volume at /dev");
    Ok(())
}

/// The usual way to have more than a pod's own, and other volumes at that place.
pub(super) fn volumes_for_shared_memory(pod: &Pod<'_>, memory: &Path) -> Result<()> {
    let shared = |name, source: &Path| with(pod, name, vec![mount(source, "/dev/shm")]);
    let (one, two) = (shared("three", memory)?, shared("four", memory)?);
    pod.sh(&one, "echo -n seen > /dev/shm/of-the-volume")?;
    let seen = "ls /dev/shm; df -k /dev/shm | awk 'NR>1 {print $2}'";
    check_eq!(pod.sh(&two, seen)?, "of-the-volume\n131072", "an emptyDir of memory");
    for (plugin, name) in [("kubernetes.io~empty-dir", "scratch-shm"), ("host-path", "shm")] {
        let dir = volume(pod.world, plugin, name)?;
        fs::write(dir.join("from-host"), "hello")?;
        let id = shared(name, &dir)?;
        check_eq!(pod.sh(&id, "cat /dev/shm/*; echo -n back > /dev/shm/from-guest")?, "hello", "{plugin}");
        check_eq!(fs::read_to_string(dir.join("from-guest"))?, "back", "{plugin}");
        pod.end(&id)?;
    }
    let own = with(pod, "own", Vec::new())?;
    check_eq!(pod.sh(&own, seen)?, "file\n65536", "what is the pod's own");
    [one, two, own].iter().try_for_each(|id| pod.end(id))
}
