//! Hooks that a guest's image brings: here the initramfs with a few more files.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskResponse;
use containerd_shim_protos::protobuf::MessageField;
use tests::bundle::Bundle;
use tests::command::run;
use tests::{Case, Context, Result, check, check_eq, eventually, operator};

use crate::copied::of_a_pod;
use crate::listed;
use crate::shares::runtime_options;

listed! {
    all: [],
    ours: [
        d23_hooks_of_the_guests_image_run_for_each_container,
        d23_a_hook_that_fails_before_a_start_fails_the_container_by_its_name,
        e5_what_the_operator_shows_to_every_guest_is_there_before_its_first_container,
    ]
}

/// Where every guest has what the operator shows to it.
const SHOWN: &str = "/run/kata-containers/shared/containers/sandbox-mounts";

/// Where Kata's images have them.
const HOOKS: &str = "/usr/share/oci/hooks";

/// The usual guest with busybox as these hooks, which is what it is called.
fn with_hooks(case: &Case<'_>, name: &str, hooks: &[&str]) -> Result<PathBuf> {
    let tree = case.dir().join(name);
    for hook in hooks {
        add(&tree, hook, &case.world.rootfs().join("bin/busybox"))?;
    }
    configured(case, &initrd_with(case, &tree)?)
}

/// Makes a copy of `program` a hook of that name, in a tree of files for the guest.
fn add(tree: &Path, hook: &str, program: &Path) -> Result<()> {
    let file = tree.join(HOOKS.trim_start_matches('/')).join(hook);
    fs::create_dir_all(file.parent().context("a stage")?)?;
    fs::copy(program, &file)?;
    Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?)
}

/// The usual initramfs with the files of `tree` in it.
fn initrd_with(case: &Case<'_>, tree: &Path) -> Result<PathBuf> {
    let initrd = tree.with_extension("img");
    fs::copy(case.world.assets().guest.join("initrd.img"), &initrd)?;
    // The kernel unpacks one archive after the other.
    let pack = "find . | cpio --create --format=newc --quiet";
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{pack} >>{}", initrd.display())]).current_dir(tree);
    run(&mut shell, Duration::from_secs(20))?.exits(0)?;
    let length = fs::metadata(&initrd)?.len();
    OpenOptions::new().write(true).open(&initrd)?.set_len(length.next_multiple_of(512))?;
    Ok(initrd)
}

fn configured(case: &Case<'_>, initrd: &Path) -> Result<PathBuf> {
    case.configuration(|file| {
        // What later hooks say is in the guest's log alone.
        file.set("hypervisor.qemu.enable_debug", true)
            .set("hypervisor.qemu.guest_hook_path", HOOKS)
            .set("hypervisor.qemu.initrd", operator::path(initrd));
    })
}

/// Busybox is called `true`, which ends well, and so on; `cat poststart` finds no such file. What a hook of a container in a
/// pod says is in the guest's log.
fn d23_hooks_of_the_guests_image_run_for_each_container(case: &Case<'_>) -> Result<()> {
    let well = with_hooks(
        case,
        "well",
        &["prestart/true", "poststart/cat", "poststart/true", "poststop/cat", "poststop/ls"],
    )?;
    let shim = case.shim("pod", &of_a_pod(case, "pod", "sandbox", &["sleep", "1000"]))?;
    let mut request = shim.create_request(None);
    request.options = MessageField::some(runtime_options(&well));
    shim.task.call::<CreateTaskResponse>("Create", &request).context("Create of the pod")?;
    let bundle = Bundle::new(case.world, case.dir().join("c"))?;
    bundle.write(&of_a_pod(case, "c", "container", &["sh", "-c", "exit 3"]))?;
    request.id = "c".to_owned();
    request.bundle = bundle.dir.to_string_lossy().into_owned();
    request.rootfs = vec![bundle.rootfs()];
    let task = shim.task.about("c");
    task.call::<CreateTaskResponse>("Create", &request).context("Create of the container")?;
    task.start("").context("Start of the container")?;
    check_eq!(task.wait("").context("Wait")?, 3, "the status of a container whose later hooks fail");
    task.delete("").context("Delete")?;
    shim.task.kill("", 9).context("Kill of the pod")?;
    shim.task.wait("").context("Wait for the pod")?;
    // The console tells a line with the next one, here that of `ls`.
    for word in ["poststart/cat (poststart): exit status: 1", "poststop/cat (poststop): exit status: 1"] {
        eventually(Duration::from_secs(10), || {
            check!(shim.bundle.log().contains(&format!("guest hook {HOOKS}/{word}")), "{word} in the log");
            Ok(())
        })?;
    }
    shim.end()
}

fn d23_a_hook_that_fails_before_a_start_fails_the_container_by_its_name(case: &Case<'_>) -> Result<()> {
    let ill = with_hooks(case, "ill", &["prestart/a-true", "prestart/false"])?;
    let refused = case.container("ill").configured(&ill).run(["true"])?;
    // What is called a-true is no program of busybox's, and says so.
    for word in [&format!("guest hook {HOOKS}/prestart/a-true (prestart)"), "exit status: 127", "not found"] {
        check!(refused.status != 0 && refused.err().contains(word), "{word}: {refused:?}");
    }
    let none = configured(case, &case.world.assets().guest.join("initrd.img"))?;
    case.container("none").configured(&none).run(["true"])?.exits(0)?;
    Ok(())
}

/// It is for what the guest's image brings; no container sees it.
fn e5_what_the_operator_shows_to_every_guest_is_there_before_its_first_container(
    case: &Case<'_>,
) -> Result<()> {
    let [fixed, free] = ["fixed", "free"].map(|name| case.dir().join(name));
    for dir in [&fixed, &free] {
        fs::create_dir(dir)?;
    }
    fs::write(fixed.join("from-host"), "hello")?;
    let busybox = case.world.rootfs().join("bin/busybox");
    let script = case.dir().join("script");
    // A write to what may only be read is to fail; what it says is kept, too.
    let commands = format!(
        "#!{HOOKS}/busybox sh\nexec 2>{SHOWN}/free/refused\n{HOOKS}/busybox cat {SHOWN}/fixed/from-host \
         >{SHOWN}/free/seen || exit 1\n! echo x >{SHOWN}/fixed/from-guest\n"
    );
    fs::write(&script, commands)?;
    let tree = case.dir().join("shown");
    add(&tree, "busybox", &busybox)?;
    add(&tree, "prestart/reads-and-writes", &script)?;
    let initrd = initrd_with(case, &tree)?;
    let file = case.configuration(|file| {
        let shown = vec![operator::path(&fixed), format!("{}:rw", free.display())];
        file.set("runtime.sandbox_bind_mounts", shown)
            .set("hypervisor.qemu.guest_hook_path", HOOKS)
            .set("hypervisor.qemu.initrd", operator::path(&initrd));
    })?;
    case.container("any").configured(&file).run(["true"])?.exits(0)?;
    check_eq!(fs::read_to_string(free.join("seen"))?, "hello", "what the guest has read and written");
    let refused = fs::read_to_string(free.join("refused"))?;
    check!(refused.contains("Read-only"), "a directory that may only be read: {refused}");
    check_eq!(fs::read_dir(&fixed)?.count(), 1, "files of it");
    Ok(())
}
