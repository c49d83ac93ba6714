//! What a start from a template costs, beside a cold one and one by runc: each a whole `ctr run --rm` of `true`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use containerd_shim_protos::api::ConnectResponse;
use tests::case::PATIENCE;
use tests::command::run;
use tests::keeper::Keeper;
use tests::memory::{family_pss_kib, pss_kib};
use tests::{Case, Result, operator};

use crate::measure::exec_times;
use crate::report::{Report, median, percentile};

/// Starts one after the other, and starts at once.
const IN_A_ROW: usize = 64;
const AT_ONCE: usize = 8;
/// Starts one after the other of what has to be made ready for each.
const SOME: usize = 16;
/// Starts of what is only compared with.
const FEW: usize = 5;
/// Starts of each kind of guest without a template.
const COLD: usize = 9;

/// Measures them all, in guests of 256 MiB.
pub(crate) fn measure(case: &Case<'_>, report: &mut Report) -> Result<()> {
    report.heading("Start from a template: ctr run --rm of true, until it returns");
    cold(case, report)?;
    let runc = (0..FEW).map(|round| took(case, &format!("runc-rm-{round}"), None));
    report.add("runc_run_s", median(runc.collect::<Result<Vec<f64>>>()?), "the same with runc");
    copies(case, report)
}

/// Starts of guests without a template, by both kernels in turn: how fast the machine is changes from one minute to the next.
fn cold(case: &Case<'_>, report: &mut Report) -> Result<()> {
    let stock = &case.world.assets().cache.join("guest");
    let trimmed = Some(stock.join("trimmed")).filter(|guest| guest.join("initrd.img").exists());
    let stock = cold_guest(case, stock)?;
    let trimmed = trimmed.map(|guest| cold_guest(case, &guest)).transpose()?;
    let (mut slow, mut fast) = (Vec::new(), Vec::new());
    for round in 0..COLD {
        slow.push(took(case, &format!("stock-{round}"), Some(&stock))?);
        if let Some(trimmed) = &trimmed {
            fast.push(took(case, &format!("trimmed-{round}"), Some(trimmed))?);
        }
    }
    let stock = median(slow);
    report.add("stock_cold_start_s", stock, "without a template, Debian's kernel");
    if trimmed.is_some() {
        let trimmed = median(fast);
        report.add("trimmed_cold_start_s", trimmed, "the same, the trimmed kernel, in turn");
        report.add("trimmed_of_stock", trimmed / stock, "the part of it that this comes to");
    }
    Ok(())
}

/// The configuration of sandboxes of that guest without a template.
fn cold_guest(case: &Case<'_>, guest: &Path) -> Result<PathBuf> {
    case.configuration(|file| {
        file.set("factory.enable_template", false)
            .set("hypervisor.qemu.kernel", operator::path(&guest.join("vmlinuz")))
            .set("hypervisor.qemu.initrd", operator::path(&guest.join("initrd.img")))
            .set("hypervisor.qemu.default_memory", 256);
    })
}

fn copies(case: &Case<'_>, report: &mut Report) -> Result<()> {
    let templates = case.dir().join("templates");
    let file = case.configuration(|file| {
        file.set("factory.enable_template", true)
            .set("factory.template_path", operator::path(&templates))
            .set("hypervisor.qemu.default_memory", 256);
    })?;
    let init = || -> Result<f64> {
        let mut command = Command::new(&case.world.assets().shim);
        command.args(["factory", "init", "-config"]).arg(&file);
        Ok(run(&mut command, PATIENCE)?.exits(0)?.took.as_secs_f64())
    };
    report.add("factory_init_s", init()?, "factory init");
    report.add("template_bytes", bytes_below(&templates)? as f64, "what the template takes on disk");
    let starts = (0..IN_A_ROW).map(|round| took(case, &format!("copy-{round}"), Some(&file)));
    let starts = starts.collect::<Result<Vec<f64>>>()?;
    for (key, first) in [("template_start_1_s", 1), ("template_start_4_s", 4), ("template_start_16_s", 16)] {
        report.add(
            key,
            median(starts[..first].to_vec()),
            &format!("the median of the first {first} in a row"),
        );
    }
    report.add("template_start_s", median(starts.clone()), "the median of 64 in a row");
    report.add("template_start_p99_s", percentile(starts, 99), "all but one in a hundred are as fast");
    report.add("concurrent8_s", at_once(case, &file)?, "eight at once, until the last returns");
    idle(case, &file, report)?;
    kept(case, report, &templates)
}

/// A sandbox with a container that sleeps, and then has execs.
fn idle(case: &Case<'_>, file: &Path, report: &mut Report) -> Result<()> {
    case.container("idle").configured(file).detach(["sleep", "100000"])?;
    case.container("idle-runc").by_runc().detach(["sleep", "100000"])?;
    let task = case.shim_of("idle")?.plain::<ConnectResponse>("Connect")?;
    let (all, shim) = (family_pss_kib(task.shim_pid), pss_kib(task.shim_pid)?);
    report.add("idle_pod_pss_kib", all, "a sandbox with a container that sleeps, all of it");
    report.add("idle_shim_pss_kib", shim, "the shim's part");
    report.add("idle_qemu_pss_kib", pss_kib(task.task_pid)?, "QEMU's");
    let [own, runc] = exec_times(case, ["idle", "idle-runc"])?;
    let (typical, runc) = (median(own.clone()), median(runc));
    report.add("template_exec_p50_ms", typical, "ctr task exec of true, until it returns");
    report.add("template_exec_p99_ms", percentile(own, 99), "all but one in a hundred are as fast");
    report.add(
        "template_exec_of_runc",
        typical / runc,
        "how many times the same with runc, in turn, that takes",
    );
    Ok(())
}

/// A start whose machine is there before it: a copy of the same template that is kept ready, one at a time.
fn kept(case: &Case<'_>, report: &mut Report, templates: &Path) -> Result<()> {
    let keeper = Keeper::start(case, 1, |file| {
        file.set("factory.enable_template", true).set("factory.template_path", operator::path(templates));
    })?;
    let starts = (0..SOME).map(|round| {
        keeper.is_full()?;
        took(case, &format!("kept-{round}"), Some(&keeper.configuration))
    });
    let starts = starts.collect::<Result<Vec<f64>>>()?;
    report.add("kept_start_s", median(starts), "the median of 16 whose machine was kept ready");
    Ok(())
}

fn took(case: &Case<'_>, id: &str, configuration: Option<&Path>) -> Result<f64> {
    let container = case.container(id);
    let container = match configuration {
        Some(file) => container.configured(file),
        None => container.by_runc(),
    };
    Ok(container.run(["true"])?.exits(0)?.took.as_secs_f64())
}

fn at_once(case: &Case<'_>, file: &Path) -> Result<f64> {
    let began = Instant::now();
    let start = |number| case.container(&format!("at-once-{number}")).configured(file).start(["true"]);
    let running = (0..AT_ONCE).map(start).collect::<Result<Vec<_>>>()?;
    for running in running {
        running.wait(PATIENCE)?.exits(0)?;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// What the files below a directory take, holes not counted.
fn bytes_below(directory: &Path) -> Result<u64> {
    let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    let sizes = paths
        .collect::<Result<Vec<PathBuf>>>()?
        .into_iter()
        .map(|path| if path.is_dir() { bytes_below(&path) } else { Ok(fs::metadata(&path)?.blocks() * 512) });
    sizes.sum()
}
