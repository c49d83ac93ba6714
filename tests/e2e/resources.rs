//! What a machine has of its host.

use std::fs;
use std::thread::available_parallelism;

use containerd_shim_protos::api::ConnectResponse;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::case::PATIENCE;
use tests::{Case, Context, Result, check, check_eq, operator};

use crate::faults::child_named;
use crate::listed;

listed!(
    all: [],
    ours: [
        c4_a_container_that_stands_alone_has_processors_and_memory_for_its_limits,
        c24_everything_of_a_sandbox_is_in_one_cgroup_that_goes_with_it,
    ]
);

/// From the start, and as a copy of a template, which has to grow.
fn c4_a_container_that_stands_alone_has_processors_and_memory_for_its_limits(case: &Case<'_>) -> Result<()> {
    let templates = case.dir().join("templates");
    for from_template in [false, true] {
        let file = case.configuration(|file| {
            file.set("hypervisor.qemu.default_memory", 256)
                .set("factory.enable_template", from_template)
                .set("factory.template_path", operator::path(&templates));
        })?;
        let script = "nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
        let container = case.container(if from_template { "copy" } else { "booted" }).configured(&file);
        let limited = container.flags(["--cpus", "1", "--memory-limit", "268435456"]);
        let out = limited.run(["sh", "-c", script])?.exits(0)?.out();
        let (vcpus, mib) = out.trim().split_once('\n').context(&out)?;
        check_eq!(vcpus, available_parallelism()?.get().min(2).to_string(), "processors");
        let mib: u64 = mib.parse().context(mib)?;
        check!((400..=512).contains(&mib), "{mib} MiB of memory");
    }
    fs::remove_dir_all(templates).map_err(Into::into)
}

fn c24_everything_of_a_sandbox_is_in_one_cgroup_that_goes_with_it(case: &Case<'_>) -> Result<()> {
    let file = case.configuration(|file| {
        file.set("hypervisor.qemu.default_memory", 256).set("runtime.sandbox_cgroup_only", true);
    })?;
    for id in ["ends", "killed"] {
        case.container(id).configured(&file).detach(["sleep", "1000"])?;
        let shim = case.shim_of(id)?.plain::<ConnectResponse>("Connect")?.shim_pid;
        let qemu = child_named(shim, "qemu-system")?;
        for pid in [Pid::from_raw(i32::try_from(shim)?), qemu] {
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            let own = format!("/{}/kata_{id}", case.namespace);
            let there = cgroups.lines().any(|line| line.ends_with(&own));
            check!(there, "process {pid} is not in {own}: {cgroups}");
        }
        if id == "killed" {
            kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;
            let exit =
                |line: &str| line.contains(&format!(" {} ", case.namespace)) && line.contains("/tasks/exit");
            case.world.events().log.wait_for(PATIENCE, exit)?;
        } else {
            case.ctr(["task", "rm", "-f", id])?.exits(0)?;
        }
        case.suspects().expect_nothing()?;
    }
    Ok(())
}
