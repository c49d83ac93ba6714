//! Root file systems on disks of the machine, as containerd's snapshotters give them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskResponse;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::types::mount::Mount;
use tests::assets::Assets;
use tests::block::{LoopDevice, MappedDevice};
use tests::bundle::spec;
use tests::case::PATIENCE;
use tests::command::run;
use tests::machine::Machine;
use tests::stdio::Fifos;
use tests::{Case, Context, Result, check, check_eq};

use crate::listed;
use crate::shares::{blockfile, root_image, runtime_options};

listed! {
    all: [],
    ours: [
        d11_a_root_file_system_in_an_image_is_the_guests_to_mount,
        d11_a_root_file_system_on_a_block_device_is_the_guests_to_mount,
        d11_a_root_file_system_on_a_device_of_device_mapper_is_the_guests_to_mount,
        d11_a_root_file_system_of_erofs_is_what_the_host_has_packed,
    ]
}

/// What the guest has written is read on the host.
const WRITES: &str = "grep ' / ' /proc/mounts; echo kept > /root/file; sync; exit 5";

/// What the host has written is read in the guest, which can change nothing of it.
const READS: &str = "grep ' / ' /proc/mounts; cat /root/from-host; echo x > /root/file";

/// Cases of what this machine's kernel or the guest's lacks, which is said.
pub(crate) fn lacks_its_kernel(name: &str) -> bool {
    let why = match name {
        _ if name.contains("device_mapper") && !MappedDevice::can_be() => {
            "/dev/mapper/control cannot be opened (modprobe dm_mod, where the kernel has it)"
        }
        // Where nothing is built each case says so.
        _ if name.contains("erofs") && Assets::find().is_ok_and(|assets| !assets.guest_has("erofs")) => {
            "the guest's kernel has no EROFS; that of make guest-kernel does"
        }
        _ => return false,
    };
    let _ = writeln!(std::io::stderr(), "NOT TESTED: {name}: {why}");
    true
}

/// A container on that root file system, from its creation to its end: its status, and what it writes.
fn run_on(case: &Case<'_>, id: &str, rootfs: Mount, script: &str) -> Result<(u32, String, String)> {
    let file = case.configuration(|file| {
        file.set("hypervisor.qemu.disable_block_device_use", false);
    })?;
    let shim = case.shim(id, &spec(case.world, &case.namespace, id, &["sh", "-c", script]))?;
    let stdio = Fifos::new(&case.dir(), id)?;
    let mut request = shim.create_request(Some(&stdio));
    request.options = MessageField::some(runtime_options(&file));
    request.rootfs = vec![rootfs];
    shim.task.call::<CreateTaskResponse>("Create", &request).context("Create")?;
    shim.task.start("").context("Start")?;
    let status = shim.task.wait("").context("Wait")?;
    let (out, err) = stdio.collect(PATIENCE)?;
    shim.end()?;
    Ok((status, out, err))
}

/// As containerd's devmapper snapshotter gives it.
fn device(file: &Path, kind: &str, options: &[&str]) -> Mount {
    Mount {
        type_: kind.to_owned(),
        source: file.to_string_lossy().into_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

fn writes(case: &Case<'_>, id: &str, rootfs: Mount) -> Result<()> {
    let (status, out, err) = run_on(case, id, rootfs, WRITES)?;
    check_eq!((status, err.as_str()), (5, ""), "the exit status");
    check!(out.contains("/dev/vd") && out.contains(" ext4 "), "the root file system: {out}");
    Ok(())
}

/// What is in a file of a file system in an image.
fn expect_kept(image: &Path) -> Result<()> {
    let mut debugfs = Command::new("debugfs");
    let kept = run(debugfs.args(["-R", "cat /root/file"]).arg(image), Duration::from_secs(10))?;
    check_eq!(kept.out(), "kept\n", "what the image has");
    Ok(())
}

fn d11_a_root_file_system_in_an_image_is_the_guests_to_mount(case: &Case<'_>) -> Result<()> {
    let image = root_image(case, "rootfs")?;
    writes(case, "image", blockfile(&image))?;
    expect_kept(&image)
}

fn d11_a_root_file_system_on_a_block_device_is_the_guests_to_mount(case: &Case<'_>) -> Result<()> {
    let image = root_image(case, "rootfs")?;
    let disk = LoopDevice::of(&image)?;
    writes(case, "device", device(disk.file.as_ref(), "ext4", &[]))?;
    disk.detach()?;
    expect_kept(&image)
}

fn d11_a_root_file_system_on_a_device_of_device_mapper_is_the_guests_to_mount(case: &Case<'_>) -> Result<()> {
    let image = root_image(case, "rootfs")?;
    let disk = LoopDevice::of(&image)?;
    let mapped = MappedDevice::of(&disk, &format!("{}-snap-1", case.namespace))?;
    writes(case, "mapped", device(&mapped.file(), "ext4", &[]))?;
    mapped.remove()?;
    disk.detach()?;
    expect_kept(&image)
}

fn d11_a_root_file_system_of_erofs_is_what_the_host_has_packed(case: &Case<'_>) -> Result<()> {
    let tree = Machine::share(case)?.join("rootfs");
    fs::write(tree.join("root/from-host"), "packed\n")?;
    let image = case.dir().join("layer.erofs");
    run(Command::new("mkfs.erofs").arg("-zlz4").args([&image, &tree]), Duration::from_secs(20))?.exits(0)?;
    reads(case, "image", device(&image, "erofs", &["ro", "loop"]))?;
    let disk = LoopDevice::of(&image)?;
    reads(case, "device", device(disk.file.as_ref(), "erofs", &["ro"]))?;
    disk.detach()
}

fn reads(case: &Case<'_>, id: &str, rootfs: Mount) -> Result<()> {
    let (status, out, err) = run_on(case, id, rootfs, READS)?;
    check!(status != 0 && err.contains("Read-only"), "a write: {status}, {err}");
    check!(out.contains("/dev/vd") && out.contains(" erofs ro"), "the root file system: {out}");
    check!(out.ends_with("packed\n"), "what the guest has read: {out}");
    Ok(())
}
