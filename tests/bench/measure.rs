//! One function per number.

use std::env;
use std::fs;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::ConnectResponse;
use tests::bundle::{process, spec};
use tests::memory::{family_pss_kib, pss_kib};
use tests::shim::TaskClient;
use tests::{Case, Context, Failure, Result, World, check_eq};

use crate::guest;
use crate::report::{Report, median, percentile, say};
use crate::{files, pods, streams, templates};

const EXECS: usize = 30;

/// The phases of a start in their order, and what is in the line that the shim logs when each is reached.
const PHASES: [(&str, &str); 6] = [
    ("create_received", "phase=create_received"),
    // The line before QEMU is started, with its arguments.
    ("helpers_up", "msg=qemu "),
    // QEMU's monitor has been greeted, and the guest's processors are let go.
    ("qmp_ready", "execute=cont"),
    ("agent_answered", "phase=agent_answered"),
    ("container_created", "phase=container_created"),
    ("started", "phase=started"),
];

/// Measures into `report` the parts that are asked for by name, or all.
pub(crate) fn all(world: &World, asked: &[String], report: &mut Report) -> Result<()> {
    type Part<'a> = &'a dyn Fn(&mut Report) -> Result<()>;
    let parts: [(&str, Part<'_>); 7] = [
        ("action", &|report| world.case(|case| start_action(case, report))),
        ("cold", &|report| world.case(|case| cold_starts(case, report))),
        ("templates", &|report| world.case(|case| templates::measure(case, report))),
        ("running", &|report| world.case(|case| running_pod(case, report))),
        ("files", &|report| world.case(|case| files::measure(case, report))),
        ("guest", &|report| world.case(|case| guest::measure(case, report))),
        ("pods", &pods::measure),
    ];
    let names = parts.map(|(name, _)| name);
    if let Some(unknown) = asked.iter().find(|asked| !names.contains(&asked.as_str())) {
        return Err(Failure::new(format!("{unknown}: not one of {}", names.join(", "))));
    }
    for (name, part) in
        parts.iter().filter(|(name, _)| asked.is_empty() || asked.iter().any(|asked| asked == name))
    {
        say(&format!("measuring {name} ..."));
        part(report)?;
    }
    Ok(())
}

pub(crate) fn rounds() -> usize {
    env::var("KATA_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn start_action(case: &Case<'_>, report: &mut Report) -> Result<()> {
    let action = |round: usize| {
        let id = format!("action-{round}");
        let shim = case.shim(&id, &spec(case.world, &case.namespace, &id, &["true"]))?;
        Ok(millis(shim.started.took))
    };
    let times = (0..9).map(action).collect::<Result<Vec<f64>>>()?;
    report.heading("Start of a container");
    report.add("start_action_ms", median(times), "the shim's start action, from exec to exit");
    let bytes = fs::metadata(&case.world.assets().shim)?.len();
    report.add("shim_binary_bytes", bytes as f64, "the shim's file");
    Ok(())
}

fn cold_starts(case: &Case<'_>, report: &mut Report) -> Result<()> {
    let mut own = Vec::new();
    let mut phases = Vec::new();
    for round in 0..rounds() {
        let from = case.log().len();
        own.push(started(case, &format!("cold-{round}"), false)?);
        if case.world.assets().is_kata() {
            phases.push(logged_phases(case.log().get(from..).unwrap_or_default())?);
        }
    }
    let runc = (0..rounds()).map(|round| started(case, &format!("runc-{round}"), true));
    let runc = runc.collect::<Result<Vec<f64>>>()?;
    report.add("cold_start_s", median(own), "ctr run --detach, until it returns");
    report.add("runc_start_s", median(runc), "the same with runc");
    report_phases(&phases, report);
    Ok(())
}

fn report_phases(phases: &[Vec<f64>], report: &mut Report) {
    if phases.is_empty() {
        return;
    }
    let own = phases.iter().map(|at| at[1] - at[0] + at[5] - at[3]).collect();
    report.add("own_share_ms", median(own), "Create and Start without QEMU's start and the guest's boot");
    report.heading("Phases of a start, in ms since Create came in");
    for (index, (name, _)) in PHASES.iter().enumerate().skip(1) {
        let at = phases.iter().map(|phases| phases[index]).collect();
        report.add(&format!("phase_{name}_ms"), median(at), "");
    }
}

/// Seconds that one detached `ctr run` takes.
fn started(case: &Case<'_>, id: &str, by_runc: bool) -> Result<f64> {
    let container = case.container(id).flags(["-d", "--null-io"]);
    let container = if by_runc { container.by_runc() } else { container };
    let mut command = container.command(["sleep", "1000"])?;
    let took = tests::command::run(&mut command, tests::case::PATIENCE)?.exits(0)?.took;
    // `rm -f` ends with the status of the task it ended.
    case.ctr(["task", "rm", "-f", id])?;
    case.ctr(["container", "rm", id])?.exits(0)?;
    Ok(took.as_secs_f64())
}

/// Milliseconds from the first of [`PHASES`] to each of them.
fn logged_phases(log: &str) -> Result<Vec<f64>> {
    let at = |(name, part): &(&str, &str)| {
        let line = log.lines().find(|line| line.contains(part));
        line.and_then(time_of_day).context(format!("the phase {name} in the shim's log"))
    };
    let times = PHASES.iter().map(at).collect::<Result<Vec<f64>>>()?;
    // A start that crosses midnight is not worth a date.
    Ok(times.iter().map(|time| (time - times[0]) * 1e3).collect())
}

/// Seconds since midnight at which a line was logged: `time=<date>T<hours>:<minutes>:<seconds>Z`.
fn time_of_day(line: &str) -> Option<f64> {
    let time = line.split_whitespace().find_map(|word| word.strip_prefix("time="))?;
    let time = time.trim_matches('"').split_once('T')?.1.trim_end_matches('Z');
    time.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))
}

fn running_pod(case: &Case<'_>, report: &mut Report) -> Result<()> {
    case.container("pod").detach(["sleep", "100000"])?;
    case.container("process").by_runc().detach(["sleep", "100000"])?;
    let task = case.shim_of("pod")?;
    let shim = task.plain::<ConnectResponse>("Connect")?.shim_pid;
    let idle = pss_kib(shim)?;

    report.heading("A running container");
    let [own, runc] = exec_times(case, ["pod", "process"])?;
    report.add("exec_p50_ms", median(own.clone()), "ctr task exec of true, until it returns");
    report.add("exec_p99_ms", percentile(own, 99), "all but one in a hundred are as fast");
    report.add("runc_exec_p50_ms", median(runc), "the same with runc, in turn");
    report.add("exec_api_p50_ms", exec_api_p50(case, &task)?, "Exec, Start, Wait and Delete alone");
    streams::measure(case, &task, report)?;

    report.heading("Memory");
    report.add("shim_pss_kib", idle, "the shim after the start");
    report.add("shim_pss_after_stream_kib", pss_kib(shim)?, "the shim after execs, and 2.6 GiB of streams");
    report.add("pod_pss_kib", family_pss_kib(shim), "all of the pod");
    Ok(())
}

/// In turn, as what a machine gives changes from moment to moment.
pub(crate) fn exec_times(case: &Case<'_>, ids: [&str; 2]) -> Result<[Vec<f64>; 2]> {
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..EXECS {
        for (id, times) in ids.iter().zip(&mut times) {
            times.push(millis(case.exec(id, &[], &["true"])?.exits(0)?.took));
        }
    }
    Ok(times)
}

fn exec_api_p50(case: &Case<'_>, task: &TaskClient) -> Result<f64> {
    let process = process(&spec(case.world, &case.namespace, &task.id, &[]), &["true"]);
    let exec = |round| {
        let began = Instant::now();
        let exec = format!("api-{round}");
        task.exec(&exec, &process, None)?;
        task.start(&exec)?;
        check_eq!(task.wait(&exec)?, 0, "status");
        task.delete(&exec)?;
        Ok::<_, Failure>(millis(began.elapsed()))
    };
    Ok(median((0..EXECS).map(exec).collect::<Result<Vec<f64>>>()?))
}
