//! The directory that host and guest share.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::mount::Mount;
use tests::bundle::spec;
use tests::case::PATIENCE;
use tests::command::run;
use tests::stdio::Fifos;
use tests::world::SHARED;
use tests::{Case, Context, Result, check, check_eq};

use crate::listed;

listed! {
    all: [
        two_hundred_shell_pipelines_in_a_row_do_not_crash,
        a_file_written_in_a_container_is_in_its_root_filesystem,
        all_that_a_container_wrote_is_the_hosts_when_it_is_deleted,
    ],
    ours: [
        a_container_runs_from_virtio_fs_with_a_warning,
        a_container_runs_from_virtio_9p,
        killed_containers_of_virtio_fs_end,
    ]
}

/// Programs executed from a share crash when the emulator runs code from before a page got new content.
const PIPELINES: &str = "i=0; while [ $i -lt 200 ]; do \
    n=$(seq 1 50 | sort -n | grep -v 7 | sed s/1/x/ | tr x y | wc -l) || exit 1; \
    [ $n = 45 ] || { echo pipeline $i gave $n; exit 2; }; i=$((i+1)); done; echo $i";

fn two_hundred_shell_pipelines_in_a_row_do_not_crash(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let output = shared.exec(SHARED, &[], &["sh", "-c", PIPELINES])?.exits(0)?;
    check_eq!((output.out().as_str(), output.err().as_str()), ("200\n", ""), "stdout and stderr");
    Ok(())
}

fn a_file_written_in_a_container_is_in_its_root_filesystem(case: &Case<'_>) -> Result<()> {
    let script = "echo kept > /root/file; chmod 640 /root/file; chown 1:2 /root/file; ln -s file /root/link; \
                  mkdir /root/dir; mv /root/file /root/dir/; stat -c '%a %u %g' /root/dir/file; cat /root/dir/file";
    let output = case.container("writes").run(["sh", "-c", script])?.exits(0)?;
    check_eq!(output.out(), "640 1 2\nkept\n", "what the file came to");
    Ok(())
}

/// Also what the guest had not sent to the host when the process ended, and the machine with it.
fn all_that_a_container_wrote_is_the_hosts_when_it_is_deleted(case: &Case<'_>) -> Result<()> {
    let script = "head -c 24000000 /dev/urandom > /root/much; sha256sum /root/much";
    let shim = case.shim("much", &spec(case.world, &case.namespace, "much", &["sh", "-c", script]))?;
    let stdio = Fifos::new(&case.dir(), "much")?;
    shim.create(Some(&stdio)).context("Create")?;
    shim.task.start("").context("Start")?;
    check_eq!(shim.task.wait("").context("Wait")?, 0, "status");
    let (written, errors) = stdio.collect(PATIENCE)?;
    check_eq!(errors, "", "stderr");
    let kept = shim.bundle.dir.join("upper/root/much");
    shim.end()?;
    let kept = run(Command::new("sha256sum").arg(kept), PATIENCE)?.exits(0)?.out();
    let digest = |line: &str| line.split(' ').next().map(str::to_owned);
    check_eq!(digest(&kept), digest(&written), "digest of the host's file");
    Ok(())
}

fn a_container_runs_from_virtio_fs_with_a_warning(case: &Case<'_>) -> Result<()> {
    let configuration = case.configuration(|file| {
        file.set("hypervisor.qemu.shared_fs", "virtio-fs").set("hypervisor.qemu.virtio_fs_cache", "always");
    })?;
    runs_from(case, "virtiofs", &configuration)?;
    if !std::fs::exists("/dev/kvm")? || case.log().contains("TCG") {
        let log = case.log();
        let warned = |line: &str| line.contains("level=warn") && line.contains("virtio-fs");
        check!(log.lines().any(warned), "no warning about virtio-fs without KVM in the log");
    }
    Ok(())
}

fn a_container_runs_from_virtio_9p(case: &Case<'_>) -> Result<()> {
    let configuration = case.configuration(|file| {
        file.set("hypervisor.qemu.shared_fs", "virtio-9p");
    })?;
    runs_from(case, "9p", &configuration)
}

/// A root file system that ended with its last process would take that process, whose program's file is still being
/// closed, along. It is a race, hence the rounds.
fn killed_containers_of_virtio_fs_end(case: &Case<'_>) -> Result<()> {
    let configuration = case.configuration(|file| {
        file.set("hypervisor.qemu.shared_fs", "virtio-fs")
            .set("hypervisor.qemu.virtio_fs_cache", "always")
            .set("hypervisor.qemu.default_memory", 512);
    })?;
    for id in ["first", "second", "third", "fourth"] {
        case.container(id).configured(&configuration).detach(["sleep", "1000"])?;
        let task = case.shim_of(id)?;
        let output =
            case.exec(id, &[], &["sh", "-c", "echo kept >/root/file && stat -c %s /root/file; id -u"])?;
        check_eq!(output.exits(0)?.out(), "5\n0\n", "what an exec saw");
        task.kill("", 9).context(id)?;
        check_eq!(task.wait("").context(id)?, 137, "status");
        case.ctr(["task", "delete", id])?;
        case.ctr(["container", "rm", id])?.exits(0)?;
    }
    Ok(())
}

/// A mount namespace of a container does not list the share itself, but its root is on that file system.
fn runs_from(case: &Case<'_>, kind: &str, configuration: &Path) -> Result<()> {
    let script = "i=0; while [ $i -lt 20 ]; do seq 1 9 | sort | wc -l; i=$((i+1)); done | uniq; \
                  awk '$2 == \"/\" {print $3}' /proc/mounts";
    let output = case.container("share").configured(configuration).run(["sh", "-c", script])?.exits(0)?;
    check_eq!(
        output.out(),
        format!("9\n{kind}\n"),
        "the pipelines' result and the kind of the root file system"
    );
    Ok(())
}

/// A file with the test image's file system in it.
pub(crate) fn root_image(case: &Case<'_>, name: &str) -> Result<PathBuf> {
    let image = case.dir().join(format!("{name}.img"));
    fs::File::create(&image)?.set_len(16 << 20)?;
    let rootfs = case.world.rootfs();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(&rootfs).arg(&image);
    run(&mut mke2fs, Duration::from_secs(20))?.exits(0)?;
    Ok(image)
}

/// As containerd's blockfile snapshotter gives it: to be mounted by a loop device.
pub(crate) fn blockfile(image: &Path) -> Mount {
    Mount {
        type_: "ext4".to_owned(),
        source: image.to_string_lossy().into_owned(),
        options: vec!["loop".to_owned()],
        ..Default::default()
    }
}

/// Options of a runtime that name a configuration file, as containerd has them.
pub(crate) fn runtime_options(file: &Path) -> Any {
    let path = file.to_string_lossy();
    // Field 2, a string.
    let value = [b"\x12", &[path.len() as u8][..], path.as_bytes()].concat();
    Any { type_url: "runtimeoptions.v1.Options".to_owned(), value, ..Default::default() }
}
