//! What a machine has of its host.

use std::fs;
use std::thread::available_parallelism;

use tests::{Case, Context, Result, check, check_eq, operator};

use crate::listed;

listed!(
    all: [],
    ours: [
        c4_a_container_that_stands_alone_has_processors_and_memory_for_its_limits,
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
