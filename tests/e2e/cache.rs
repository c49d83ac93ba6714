//! Sandboxes whose machines were there before them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use containerd_shim_protos::api::ConnectResponse;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::case::PATIENCE;
use tests::keeper::Keeper;
use tests::{Case, Context, Result, check, check_eq, eventually, operator};

use crate::listed;
use crate::templates::{DIFFERENCES, check_differs};

listed! {
    all: [],
    ours: [
        a_machine_that_waits_becomes_that_of_whoever_comes,
        whoever_dies_of_those_that_wait_leaves_nothing,
    ]
}

/// Where shims that wait have their directories.
const READY: &str = "/run/kata/.ready";

fn pid(number: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(number)?))
}

/// The process of the shim that containerd talks to.
fn shim_of(case: &Case<'_>, id: &str) -> Result<u32> {
    Ok(case.shim_of(id)?.plain::<ConnectResponse>("Connect")?.shim_pid)
}

fn a_machine_that_waits_becomes_that_of_whoever_comes(case: &Case<'_>) -> Result<()> {
    let mut keeper = Keeper::start(case, 2, |_| {})?;
    let waiting = keeper.shims()?;
    check_eq!(waiting.len(), 2, "shims that wait");
    let mut seen = HashSet::new();
    // What is mounted on the host while it waits is there, too.
    let volume = case.dir().join("volume");
    fs::create_dir(&volume)?;
    mount(Some("late"), &volume, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    fs::write(volume.join("file"), "late\n")?;
    let bound = format!("type=bind,src={},dst=/volume,options=rbind:ro", volume.display());
    for id in ["waited-for-1", "waited-for-2"] {
        let container = case.container(id).configured(&keeper.configuration).flags(["--mount", &bound]);
        container.detach(["sleep", "1000"])?;
        check_eq!(case.exec(id, &[], &["cat", "/volume/file"])?.exits(0)?.out(), "late\n", "the volume");
        let shim = shim_of(case, id)?;
        check!(waiting.contains(&shim), "the shim {shim} of {id} is none of {waiting:?}");
        let title = String::from_utf8(fs::read(format!("/proc/{shim}/cmdline"))?)?.replace('\0', " ");
        check!(title.contains(&format!("-namespace {} -id {id} ", case.namespace)), "it is called {title}");
        let score = |process: u32| fs::read_to_string(format!("/proc/{process}/oom_score_adj"));
        check_eq!(score(case.shim_of(id)?.state("")?.pid)?, score(shim)?, "how QEMU and its shim are spared");
        let said = case.exec(id, &[], &["sh", "-c", DIFFERENCES])?.exits(0)?;
        check_differs(&said, &mut seen)?;
    }
    // Others take their places, and a container that needs another machine does not get one of those.
    keeper.is_full()?;
    let other = case.configuration(|file| {
        file.set("factory.vm_cache_number", 2)
            .set("factory.vm_cache_endpoint", operator::path(&Keeper::endpoint(case)))
            .set("hypervisor.qemu.default_memory", 384);
    })?;
    let script = ["sh", "-c", "awk '/MemTotal/ {print ($2 > 300 * 1024)}' /proc/meminfo; hostname"];
    let said = case.container("bigger").configured(&other).run(script)?.exits(0)?;
    let said = said.out();
    let (has_more, name) = said.split_once('\n').context(&said)?;
    check_eq!(has_more, "1", "whether it has more memory");
    // Who has a machine keeps it.
    check_eq!(keeper.end(Signal::SIGTERM)?, Some(0), "the keeper's status");
    check!(!Keeper::endpoint(case).exists(), "the keeper's socket is left");
    for id in ["waited-for-1", "waited-for-2"] {
        check_eq!(
            case.exec(id, &[], &["hostname"])?.exits(0)?.out(),
            name,
            "the host name where none is asked for"
        );
        case.ctr(["task", "rm", "-f", id])?.exits(0)?;
    }
    umount(&volume)?;
    case.suspects().expect_nothing()
}

fn whoever_dies_of_those_that_wait_leaves_nothing(case: &Case<'_>) -> Result<()> {
    // With virtiofsd, which has a child of its own.
    let mut keeper = Keeper::start(case, 1, |file| {
        file.set("hypervisor.qemu.shared_fs", "virtio-fs");
    })?;
    let one = keeper.shims()?.into_iter().next().context("a shim that waits")?;
    kill(pid(one)?, Signal::SIGKILL)?;
    eventually(PATIENCE, || {
        check!(
            !Path::new(READY).join(one.to_string()).exists(),
            "the directory of the one that was killed is left"
        );
        Ok(())
    })?;
    keeper.is_full()?;

    // One that is somebody's dies as any shim.
    let waiting = keeper.shims()?;
    case.container("taken").configured(&keeper.configuration).detach(["sleep", "1000"])?;
    let taken = shim_of(case, "taken")?;
    check!(waiting.contains(&taken), "the shim {taken} is none of {waiting:?}");
    keeper.is_full()?;
    kill(pid(taken)?, Signal::SIGKILL)?;
    let exit = |line: &str| line.contains(&format!(" {} ", case.namespace)) && line.contains("/tasks/exit");
    case.world.events().log.wait_for(PATIENCE, exit)?;
    case.ctr(["task", "delete", "taken"])?;

    let other = keeper.shims()?.into_iter().next().context("another shim that waits")?;
    keeper.end(Signal::SIGKILL)?;
    case.suspects().expect_nothing().context("after the keeper was killed")?;
    check!(!Path::new(READY).join(other.to_string()).exists(), "the directory of the other one is left");
    // The next keeper on this host removes what this one could not.
    let left = Path::new(READY).join(format!("keeper-{}", keeper.pid()));
    check!(left.exists(), "{} is not there", left.display());
    drop(Keeper::start(case, 1, |_| {})?);
    check!(!left.exists(), "{} is left", left.display());
    case.suspects().expect_nothing()
}
