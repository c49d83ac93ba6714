//! Machines other than the usual one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api::ConnectResponse;
use tempfile::Builder;
use tests::command::run;
use tests::operator::{Configuration, path};
use tests::{Case, Context, Result, check, check_eq, eventually};

use crate::exec::field;
use crate::faults::child_named;
use crate::listed;

listed! {
    all: [],
    ours: [
        a8_a_container_runs_in_a_microvm,
        a33_c4_a_rootless_machine_is_a_user_of_its_own_who_is_gone_with_it,
    ]
}

/// How many PCI devices there are, what the virtio devices are on, which clock there is, and where random numbers are
/// from, whose driver is loaded after the first container's start.
const MICROVM: &str = "ls /sys/bus/pci/devices 2>/dev/null | wc -l; \
    for device in /sys/bus/virtio/devices/*; do readlink -f $device; done | grep -o LNRO0005 | uniq; \
    cat /sys/devices/system/clocksource/clocksource0/current_clocksource; \
    i=0; until grep -q virtio /sys/class/misc/hw_random/rng_current || [ $i = 100 ]; do sleep 0.1; i=$((i+1)); done; \
    cat /sys/class/misc/hw_random/rng_current; nproc";

/// QEMU lets an initrd end within the last page of memory, and this one fills it: no firmware may need that page.
fn a8_a_container_runs_in_a_microvm(case: &Case<'_>) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut padded = Ok(());
    let configuration = case.configuration(|file| {
        file.set("hypervisor.qemu.machine_type", "microvm")
            .set("hypervisor.qemu.default_vcpus", 2)
            .set("hypervisor.qemu.default_memory", 512);
        padded = fill_last_page(file, directory.path());
    })?;
    padded?;
    let output = case.container("micro").configured(&configuration).run(["sh", "-c", MICROVM])?.exits(0)?;
    let out = output.out();
    let seen: Vec<&str> = out.lines().collect();
    check_eq!(seen.len(), 5, "lines of {out:?}");
    check_eq!((seen[0], seen[1]), ("0", "LNRO0005"), "PCI devices, and what virtio devices are on");
    // `tsc-early` is what it is called until the kernel has measured it again.
    check!(
        ["tsc", "tsc-early", "kvm-clock"].contains(&seen[2]),
        "a clock that is not the processor's: {out}"
    );
    check_eq!((seen[3], seen[4]), ("virtio_rng.0", "2"), "the source of random numbers, and processors");
    Ok(())
}

/// Archives may be followed by zeros (Linux, `early-userspace/buffer-format.rst`).
fn fill_last_page(file: &mut Configuration, to: &Path) -> Result<()> {
    let (key, copy) = ("hypervisor.qemu.initrd", to.join("initrd.img"));
    let size = fs::copy(file.text(key).context(key)?, &copy).context(key)?;
    fs::File::options().write(true).open(&copy)?.set_len((size + 1).next_multiple_of(4096) - 1)?;
    file.set(key, path(&copy));
    Ok(())
}

/// No account is made: the user is a number, which no process has any more in the end.
fn a33_c4_a_rootless_machine_is_a_user_of_its_own_who_is_gone_with_it(case: &Case<'_>) -> Result<()> {
    let public = Builder::new().prefix("kt").permissions(Permissions::from_mode(0o755)).tempdir_in("/tmp")?;
    let mut published = Ok(());
    let configuration = case.configuration(|file| {
        file.set("hypervisor.qemu.rootless", true)
            .set("hypervisor.qemu.shared_fs", "virtio-fs")
            .set("hypervisor.qemu.virtio_fs_cache", "always");
        published = publish(file, public.path());
    })?;
    published?;
    let accounts = fs::read("/etc/passwd")?;
    case.container("rootless").configured(&configuration).detach(["sleep", "1000"])?;
    let task = case.shim_of("rootless")?;
    let shim = task.plain::<ConnectResponse>("Connect")?.shim_pid;
    let status = |name| -> Result<String> {
        Ok(fs::read_to_string(format!("/proc/{}/status", child_named(shim, name)?))?)
    };
    let qemu = status("qemu-system")?;
    let uids = field(&qemu, "Uid");
    let user = uids.split_whitespace().next().unwrap_or_default().to_owned();
    check_eq!(uids, [user.as_str(); 4].join("\t"), "the users of QEMU");
    check_eq!(field(&qemu, "Gid"), uids, "its groups");
    check!(user.parse::<u32>()? >= 0x7000_0000, "a user that somebody may have: {user}");
    let groups = field(&qemu, "Groups");
    check!(groups.split_whitespace().count() <= usize::from(fs::exists("/dev/kvm")?), "groups {groups}");
    check_eq!(field(&qemu, "CapEff"), "0000000000000000", "its capabilities");
    // The files it serves are those of all users of the container.
    check_eq!(field(&status("virtiofsd")?, "Uid"), ["0"; 4].join("\t"), "the users of virtiofsd");

    let script = "echo kept > /root/file && chown 1:2 /root/file && stat -c '%u %g' /root/file; id -u";
    let output = case.exec("rootless", &[], &["sh", "-c", script])?.exits(0)?;
    check_eq!(output.out(), "1 2\n0\n", "a file's owner, and the container's user");

    task.kill("", 9)?;
    check_eq!(task.wait("")?, 137, "status");
    case.ctr(["task", "delete", "rootless"])?;
    case.ctr(["container", "rm", "rootless"])?.exits(0)?;
    case.suspects().expect_nothing()?;
    eventually(Duration::from_secs(5), || {
        check!(!is_somebodys(&user)?, "a process of the user {user} is left");
        Ok(())
    })?;
    check_eq!(fs::read("/etc/passwd")?, accounts, "the accounts");
    Ok(())
}

/// Copies the guest, and a QEMU that `make matrix` has fetched, to where everybody finds them: the cache may be in root's
/// home.
fn publish(file: &mut Configuration, to: &Path) -> Result<()> {
    for (key, name) in [("hypervisor.qemu.kernel", "vmlinuz"), ("hypervisor.qemu.initrd", "initrd.img")] {
        let copy = to.join(name);
        fs::copy(file.text(key).context(key)?, &copy).context(key)?;
        file.set(key, path(&copy));
    }
    let key = "hypervisor.qemu.path";
    let qemu = PathBuf::from(file.text(key).context(key)?);
    if !qemu.starts_with("/usr") {
        let (from, name) = (qemu.parent().context(key)?, qemu.file_name().context(key)?);
        let copy = to.join("qemu");
        run(Command::new("cp").arg("-a").args([from, &copy]), Duration::from_secs(60))?.exits(0)?;
        file.set(key, path(&copy.join(name)));
    }
    Ok(())
}

fn is_somebodys(user: &str) -> Result<bool> {
    let statuses = fs::read_dir("/proc")?.flatten().map(|entry| entry.path().join("status"));
    // A process may end while it is looked at.
    let mut statuses = statuses.filter_map(|path| fs::read_to_string(path).ok());
    Ok(statuses.any(|status| field(&status, "Uid").split_whitespace().any(|id| id == user)))
}
