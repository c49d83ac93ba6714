//! Volumes, as kubelet prepares them: written on one side, read on the other.

mod huge_pages;
mod places;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use k8s_cri::v1::{Device, DnsConfig, Mount, MountPropagation};
use tests::assets::by_sandbox_api;
use tests::block::LoopDevice;
use tests::command::{Output, run};
use tests::pods::{Pod, PodWorld, snippet};
use tests::{Context, Result, check, check_eq, eventually, fail};

use huge_pages::d15_empty_dirs_of_huge_pages_are_the_guests;

crate::listed![
    d10_d12_files_and_directories_of_the_host_are_seen_on_both_sides,
    d13_a_configmap_that_changes_is_seen_within_two_seconds,
    d14_d15_memory_that_containers_share_is_the_pods,
    d15_sub_paths_of_memory_are_parts_of_the_pods,
    d15_empty_dirs_of_huge_pages_are_the_guests,
    d15_empty_dirs_of_disks_are_with_the_pods_own_container_where_the_operator_says_so,
    d16_d17_block_volumes_are_disks_of_the_machine_for_as_long_as_they_are_used,
    d16_storage_drivers_assign_measure_and_grow_volumes_by_a_command,
];

/// How long an update of a volume may take to be seen.
const UPDATE: Duration = Duration::from_secs(2);

/// Longest time for a command about a volume.
const COMMAND: Duration = Duration::from_secs(90);

/// What a volume grows to, in bytes.
const GROWN: u64 = 16 << 20;

pub(crate) fn mount(host: &Path, container: &str) -> Mount {
    Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

fn read_only(host: &Path, container: &str) -> Mount {
    Mount { readonly: true, ..mount(host, container) }
}

/// A container that only waits, with volumes.
pub(crate) fn with(pod: &Pod<'_>, name: &str, mounts: Vec<Mount>) -> Result<String> {
    let mut container = pod.container(name, ["sleep", "1000"]);
    container.mounts = mounts;
    pod.run(&container)
}

/// A volume's directory where kubelet has those of its pods.
pub(crate) fn volume(world: &PodWorld, plugin: &str, name: &str) -> Result<PathBuf> {
    let pods = world.dir().join("kubelet/pods").join(format!("{plugin}-{name}"));
    let dir = pods.join("volumes").join(plugin).join(name);
    fs::create_dir_all(&dir).context(dir.display())?;
    fs::set_permissions(&dir, Permissions::from_mode(0o777))?;
    Ok(dir)
}

fn d10_d12_files_and_directories_of_the_host_are_seen_on_both_sides(world: &PodWorld) -> Result<()> {
    let dir = volume(world, "host-path", "data")?;
    let disk = volume(world, "kubernetes.io~empty-dir", "scratch")?;
    chown(&disk, None, Some(4242))?;
    fs::write(dir.join("from-host"), "hello")?;
    fs::create_dir(dir.join("sub"))?;
    fs::write(dir.join("sub/file"), "below")?;
    // What is mounted later is to arrive, so the directory is a mount that tells of it.
    on_host(world, &format!("mount --bind {0} {0} && mount --make-shared {0}", dir.display()))?;
    let mut config = world.config();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.88.0.53".into()],
        searches: vec!["example.test".into()],
        options: vec!["ndots:5".into()],
    });
    world.pod(config, |pod| {
        let later = Mount {
            propagation: MountPropagation::PropagationHostToContainer.into(),
            ..mount(&dir, "/later")
        };
        let one = with(
            pod,
            "one",
            vec![
                mount(&dir, "/data"),
                read_only(&dir, "/fixed"),
                mount(&dir.join("sub/file"), "/etc/one-file"),
                mount(&dir.join("sub"), "/part"),
                mount(&disk, "/scratch"),
                later,
            ],
        )?;
        let two = with(pod, "two", vec![mount(&disk, "/scratch")])?;
        check_eq!(
            pod.sh(&one, "cat /data/from-host /etc/one-file /part/file")?,
            "hellobelowbelow",
            "what the host has written"
        );
        pod.sh(&one, "echo -n changed > /etc/one-file; echo -n back > /data/from-guest")?;
        check_eq!(fs::read_to_string(dir.join("sub/file"))?, "changed", "a file's content");
        check_eq!(fs::read_to_string(dir.join("from-guest"))?, "back", "what the guest has written");
        let refused = world.cri().exec(&one, ["sh", "-c", "echo x > /fixed/from-guest"])?;
        check!(refused.status != 0 && refused.err().contains("Read-only"), "a read-only mount: {refused:?}");
        pod.sh(&one, "echo -n shared > /scratch/file; chgrp 77 /scratch/file")?;
        check_eq!(
            pod.sh(&two, "cat /scratch/file; stat -c ' %g' /scratch /scratch/file")?,
            "shared 4242\n 77",
            "content and groups"
        );
        let resolv = pod.sh(&one, "cat /etc/resolv.conf")?;
        for line in ["nameserver 10.88.0.53", "search example.test", "options ndots:5"] {
            check!(resolv.contains(line), "{line} in {resolv:?}");
        }
        on_host(
            world,
            &format!("mount -t tmpfs later {0}/sub && echo mounted > {0}/sub/file", dir.display()),
        )?;
        check_eq!(pod.sh(&one, "cat /later/sub/file")?, "mounted", "what is mounted later");
        on_host(world, &format!("umount {}/sub", dir.display()))?;
        places::d12_the_kernels_files_and_devices_are_the_guests(pod, &dir.join("sub"))
    })?;
    on_host(world, &format!("umount {}", dir.display()))
}

/// The volume's files are links into a directory that is exchanged for another as a whole.
fn d13_a_configmap_that_changes_is_seen_within_two_seconds(world: &PodWorld) -> Result<()> {
    let volumes = [
        "kubernetes.io~configmap",
        "kubernetes.io~secret",
        "kubernetes.io~projected",
        "kubernetes.io~downward-api",
    ];
    let dirs = volumes.map(|plugin| volume(world, plugin, "settings"));
    let dirs = dirs.into_iter().collect::<Result<Vec<_>>>()?;
    dirs.iter().try_for_each(|dir| publish(dir, "old"))?;
    world.pod(world.config(), |pod| {
        let mounts = dirs.iter().enumerate().map(|(at, dir)| read_only(dir, &format!("/volumes/{at}")));
        let id = with(pod, "reader", mounts.collect())?;
        let all = "cat /volumes/*/key-* | sort | uniq -c | tr -s ' '";
        check_eq!(pod.sh(&id, all)?.trim(), "48 old", "the first content");
        dirs.iter().try_for_each(|dir| publish(dir, "new"))?;
        eventually(UPDATE, || {
            check_eq!(pod.sh(&id, all)?.trim(), "48 new", "the content after the update");
            Ok(())
        })
    })
}

/// Twelve keys of that value, as kubelet writes them.
fn publish(dir: &Path, value: &str) -> Result<()> {
    let content = dir.join(format!("..{value}"));
    fs::create_dir(&content)?;
    for key in 0..12 {
        fs::write(content.join(format!("key-{key}")), format!("{value}\n"))?;
        let link = dir.join(format!("key-{key}"));
        if fs::symlink_metadata(&link).is_err() {
            symlink(format!("..data/key-{key}"), link)?;
        }
    }
    symlink(content.file_name().context("the content's name")?, dir.join("..data_tmp"))?;
    fs::rename(dir.join("..data_tmp"), dir.join("..data"))?;
    Ok(())
}

fn d14_d15_memory_that_containers_share_is_the_pods(world: &PodWorld) -> Result<()> {
    let cache = volume(world, "kubernetes.io~empty-dir", "cache")?;
    on_host(world, &format!("mount -t tmpfs -o size=8m,mode=2770,gid=4242 cache {}", cache.display()))?;
    let memory = volume(world, "kubernetes.io~empty-dir", "shm")?;
    on_host(world, &format!("mount -t tmpfs -o size=128m,mode=777 tmpfs {}", memory.display()))?;
    world.pod(world.config(), |pod| {
        let volume = || vec![mount(&cache, "/cache")];
        let (one, two) = (with(pod, "one", volume())?, with(pod, "two", volume())?);
        pod.sh(&one, "echo -n kept > /cache/file; echo -n seen > /dev/shm/file")?;
        check_eq!(
            pod.sh(&two, "cat /dev/shm/file /cache/file; stat -c ' %g %a' /cache")?,
            "seenkept 4242 2770",
            "content, group and mode"
        );
        let sizes = "df -k /cache /dev/shm | awk 'NR>1 {print $2}' | tr '\\n' ' '";
        check_eq!(pod.sh(&two, sizes)?.trim(), "8192 65536", "the sizes of the host's, in KiB");
        check!(fs::read_dir(&cache)?.next().is_none(), "it is memory of the guest's");
        [&one, &two].into_iter().try_for_each(|id| pod.end(id))?;
        let again = with(pod, "again", volume())?;
        check_eq!(pod.sh(&again, "cat /cache/file")?, "kept", "what outlives its containers");
        places::volumes_for_shared_memory(pod, &memory)
    })?;
    on_host(world, &format!("umount {} {}", cache.display(), memory.display()))
}

/// A directory of an emptyDir, bound where kubelet has those that containers have by subPath.
fn part(world: &PodWorld, volume: &Path, container: &str, inner: &str) -> Result<PathBuf> {
    let (name, pod) = (volume.file_name().context("the volume's name")?, volume.ancestors().nth(3));
    let parts = pod.context("the pod's directory")?.join("volume-subpaths").join(name);
    let (part, of) = (parts.join(container).join("0"), volume.join(inner));
    let (part_name, of) = (part.display(), of.display());
    on_host(
        world,
        &format!("mkdir -p -m 2770 {of} && mkdir -p {part_name} && mount --bind {of} {part_name}"),
    )?;
    Ok(part)
}

fn d15_sub_paths_of_memory_are_parts_of_the_pods(world: &PodWorld) -> Result<()> {
    let cache = volume(world, "kubernetes.io~empty-dir", "parts")?;
    on_host(world, &format!("mount -t tmpfs -o size=8m,mode=2770,gid=4242 parts {}", cache.display()))?;
    let parts = [("two", "sub/deep"), ("three", "conf"), ("four", "evil"), ("five", "sub")];
    let parts = parts.map(|(container, inner)| part(world, &cache, container, inner));
    let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
    let outcome = world.pod(world.config(), |pod| {
        // The part may come before the whole.
        let two = with(pod, "two", vec![mount(&parts[0], "/part")])?;
        check_eq!(pod.sh(&two, "stat -c '%g %a' /part")?, "4242 2770", "group and mode of what was made");
        pod.sh(&two, "echo -n of the part > /part/file")?;
        let one = with(pod, "one", vec![mount(&cache, "/cache")])?;
        check_eq!(pod.sh(&one, "cat /cache/sub/deep/file")?, "of the part", "the part in the whole");
        pod.sh(&one, "echo -n of the whole > /cache/sub/deep/file; echo -n settings > /cache/conf; ln -s / /cache/evil")?;
        check_eq!(pod.sh(&two, "cat /part/file")?, "of the whole", "the whole in the part");
        let three = with(pod, "three", vec![mount(&parts[1], "/etc/conf"), read_only(&parts[3], "/fixed")])?;
        check_eq!(pod.sh(&three, "cat /etc/conf /fixed/deep/file")?, "settingsof the whole", "a file, and another part");
        let refused = world.cri().exec(&three, ["sh", "-c", "echo x > /fixed/file"])?;
        check!(refused.status != 0 && refused.err().contains("Read-only"), "a read-only part: {refused:?}");
        let Err(refused) = with(pod, "four", vec![mount(&parts[2], "/evil")]) else {
            fail!("a link out of the volume leads a container out of it")
        };
        check!(refused.to_string().contains("evil"), "{refused}");
        [&one, &two, &three].into_iter().try_for_each(|id| pod.end(id))?;
        let again = with(pod, "again", vec![mount(&parts[0], "/part")])?;
        check_eq!(pod.sh(&again, "cat /part/file")?, "of the whole", "what outlives its containers");
        Ok(())
    });
    let all = parts.iter().chain([&cache]);
    all.map(|mounted| on_host(world, &format!("umount {}", mounted.display()))).fold(outcome, Result::and)
}

fn d15_empty_dirs_of_disks_are_with_the_pods_own_container_where_the_operator_says_so(
    world: &PodWorld,
) -> Result<()> {
    let scratch = volume(world, "kubernetes.io~empty-dir", "with-the-pod")?;
    chown(&scratch, None, Some(4242))?;
    fs::set_permissions(&scratch, Permissions::from_mode(0o2777))?;
    let inner = part(world, &scratch, "two", "sub")?;
    // No annotation sets it. Pods of other cases that are made meanwhile see no difference.
    let more = world.dir().join("config.d");
    fs::create_dir_all(&more)?;
    let file = more.join("empty-dirs.toml");
    fs::write(&file, "[runtime]\ndisable_guest_empty_dir = false\n")?;
    let outcome = world.pod(world.config(), |pod| {
        fs::remove_file(&file)?;
        let one = with(pod, "one", vec![mount(&scratch, "/scratch")])?;
        let two = with(pod, "two", vec![mount(&scratch, "/scratch"), mount(&inner, "/part")])?;
        pod.sh(&one, "echo -n kept > /scratch/file; echo -n part > /scratch/sub/file")?;
        check_eq!(
            pod.sh(&two, "cat /scratch/file /part/file; stat -c ' %g %a' /scratch")?,
            "keptpart 4242 2777",
            "content, group and mode"
        );
        // There is no such container where pods are made by the Sandbox API.
        let on_host = fs::read_dir(&scratch)?.count();
        check_eq!(on_host, if by_sandbox_api() { 2 } else { 1 }, "what is on the host: kubelet's sub path");
        [&one, &two].into_iter().try_for_each(|id| pod.end(id))?;
        let again = with(pod, "again", vec![mount(&scratch, "/scratch")])?;
        check_eq!(pod.sh(&again, "cat /scratch/file")?, "kept", "what outlives its containers");
        Ok(())
    });
    let _ = fs::remove_file(&file);
    outcome.and(on_host(world, &format!("umount {}", inner.display())))
}

fn d16_d17_block_volumes_are_disks_of_the_machine_for_as_long_as_they_are_used(
    world: &PodWorld,
) -> Result<()> {
    let disks = ["plain.img", "ext4.img"].map(|name| LoopDevice::blank(&world.dir().join(name)));
    let [plain, direct] = disks;
    let (plain, direct) = (plain?, direct?);
    world.pod(world.config(), |pod| {
        device_of_a_container(pod, &plain.file)?;
        direct_volume(pod, &direct.file)
    })?;
    plain.detach()?;
    direct.detach()
}

fn device_of_a_container(pod: &Pod<'_>, file: &str) -> Result<()> {
    let run = |name: &str, permissions: &str| {
        let mut container = pod.container(name, ["sleep", "1000"]);
        container.devices = vec![Device {
            container_path: "/dev/data".into(),
            host_path: file.to_owned(),
            permissions: permissions.into(),
        }];
        pod.run(&container)
    };
    let writer = run("writer", "rwm")?;
    pod.sh(&writer, "echo written in the guest > /dev/data; sync /dev/data")?;
    pod.end(&writer)?;
    let content = fs::read(file)?;
    check!(content.starts_with(b"written in the guest\n"), "what the disk has on the host");
    let reader = run("reader", "rm")?;
    check_eq!(
        pod.sh(&reader, "head -n 1 /dev/data")?,
        "written in the guest",
        "what the next container reads"
    );
    let refused = pod.world.cri().exec(&reader, ["sh", "-c", "echo x > /dev/data"])?;
    check!(refused.status != 0, "a device that may only be read: {refused:?}");
    let other = pod.run(&pod.container("other", ["sleep", "1000"]))?;
    check_eq!(pod.sh(&other, "ls /dev/data 2>/dev/null || echo none")?, "none", "another container");
    pod.end(&reader)
}

/// A storage driver leaves a note of the device rather than mount it.
fn direct_volume(pod: &Pod<'_>, file: &str) -> Result<()> {
    // What was there before the volume came to this group.
    let before = pod.world.dir().join("before");
    fs::create_dir_all(before.join("deep/er"))?;
    fs::write(before.join("deep/er/file"), "")?;
    fs::set_permissions(before.join("deep/er/file"), Permissions::from_mode(0o600))?;
    symlink("/", before.join("link"))?;
    let mut mke2fs = Command::new("mke2fs");
    run(mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(&before).arg(file), Duration::from_secs(10))?.exits(0)?;
    let dir = volume(pod.world, "kubernetes.io~csi", "database")?;
    let note = Note::of(&dir, file)?;
    let volume = || vec![mount(&dir, "/data")];
    let (one, two) = (with(pod, "one", volume())?, with(pod, "two", volume())?);
    pod.sh(&one, "echo -n kept > /data/file; sync")?;
    check_eq!(
        pod.sh(&two, "cat /data/file; stat -c ' %g' /data; stat -fc %T /data")?,
        "kept 4242\next2/ext3",
        "it"
    );
    check!(fs::read_dir(&dir)?.next().is_none(), "the host has not mounted it");
    let groups = "stat -c '%g %a' /data/deep/er /data/deep/er/file; stat -c %g /data/link";
    check_eq!(pod.sh(&two, groups)?, "4242 2775\n4242 660\n4242", "groups of all that is in it");
    pod.sh(&two, "chgrp 0 /data/deep/er/file")?;
    pod.end(&one)?;
    check_eq!(pod.sh(&two, "cat /data/file")?, "kept", "what one of its containers still has");
    pod.end(&two)?;
    note.write(file, serde_json::json!({"fsGroup": "4242", "fsGroupChangePolicy": "OnRootMismatch"}))?;
    let again = with(pod, "again", volume())?;
    check_eq!(pod.sh(&again, "cat /data/file")?, "kept", "what the disk has");
    check_eq!(
        pod.sh(&again, "stat -c %g /data /data/deep/er/file")?,
        "4242\n0",
        "groups where the root's is right, and is all that is looked at"
    );
    pod.end(&again)
}

fn d16_storage_drivers_assign_measure_and_grow_volumes_by_a_command(world: &PodWorld) -> Result<()> {
    let image = world.dir().join("by-command.img");
    let disk = LoopDevice::blank(&image)?;
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", &disk.file]), Duration::from_secs(10))?.exits(0)?;
    let dir = volume(world, "kubernetes.io~csi", "by-command")?;
    let say = |action: &str| as_the_page_says(world, action, &dir, &disk.file);
    let total = || -> Result<u64> {
        let said = say("stats")?.exits(0)?.out();
        let stats: serde_json::Value = serde_json::from_str(&said)?;
        stats["usage"][0]["total"].as_u64().context(said)
    };
    let refused = |output: Output, words: &str| -> Result<()> {
        check!(output.status != 0 && output.err().contains(words), "{words} in {output:?}");
        Ok(())
    };
    let mut wrong = world.shim_command();
    wrong.args(["direct-volume", "add", "--mount-info", r#"{"volume-type": "block"}"#, "--volume-path"]);
    refused(run(wrong.arg(&dir), COMMAND)?, "missing field `device`")?;
    refused(say("stats")?, "no volume of that path was added")?;
    // Takes it away whatever happens.
    let _note = Note::of(&dir, &disk.file)?;
    say("add")?.exits(0)?;
    refused(say("stats")?, "no sandbox has this volume in use")?;
    world.pod(world.config(), |pod| {
        let container = with(pod, "keeper", vec![mount(&dir, "/data")])?;
        let mounted = pod.sh(&container, "grep ' /data ext4 ' /proc/mounts")?;
        check!(mounted.contains("noatime"), "the options that the command gave: {mounted}");
        let before = total()?;
        check!((4 << 20..8 << 20).contains(&before), "{before} bytes in all");
        refused(say("resize")?, "8388608")?;
        disk.grow(&image, GROWN)?;
        say("resize")?.exits(0)?;
        let after = total()?;
        check!(after > before + (6 << 20), "from {before} to {after} bytes");
        pod.sh(&container, "head -c 10m /dev/zero > /data/file && sync")?;
        pod.end(&container)
    })?;
    say("remove")?.exits(0)?;
    refused(say("stats")?, "no volume of that path was added")?;
    disk.detach()
}

/// Runs the page's command for this action, about a volume of ours instead.
fn as_the_page_says(world: &PodWorld, action: &str, dir: &Path, device: &str) -> Result<Output> {
    let shim = world.shim_command();
    let shim = shim.get_program().to_string_lossy();
    let commands = snippet("sh", "direct-volume add")?.replace("\\\n", " ");
    let mut command = commands
        .lines()
        .find(|line| line.contains(&format!("direct-volume {action} ")))
        .context(format_args!("the page's command to {action} a volume"))?
        .to_owned();
    let dir = dir.to_string_lossy();
    for (theirs, ours) in [
        ("containerd-shim-kata-v2", &*shim),
        ("/var/lib/kubelet/pods/.../mount", &*dir),
        ("/dev/sdx", device),
        ("17179869184", &GROWN.to_string()),
    ] {
        command = command.replace(theirs, ours);
    }
    run(Command::new("sh").args(["-c", &command]), COMMAND)
}

/// A storage driver's note of a volume; taken away when dropped.
pub(crate) struct Note(PathBuf);

impl Note {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn of(volume: &Path, device: &str) -> Result<Note> {
        let name = URL_SAFE.encode(volume.to_string_lossy().as_bytes());
        let note = Note(Path::new("/run/kata-containers/shared/direct-volumes").join(name));
        fs::create_dir_all(&note.0)?;
        note.write(device, serde_json::json!({"fsGroup": "4242"}))?;
        Ok(note)
    }

    fn write(&self, device: &str, metadata: serde_json::Value) -> Result<()> {
        let text = serde_json::json!({
            "volume-type": "block", "device": device, "fstype": "ext4",
            "metadata": metadata, "options": ["noatime"]
        });
        Ok(fs::write(self.0.join("mountInfo.json"), text.to_string())?)
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // The directories of all storage drivers, if they were not there before.
        for dir in self.0.ancestors().skip(1).take(3) {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Runs a script where containerd has its mounts.
fn on_host(world: &PodWorld, script: &str) -> Result<()> {
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &world.host().to_string(), "--mount", "sh", "-c", script]);
    run(&mut nsenter, Duration::from_secs(10))?.exits(0).context(script).map(drop)
}
