//! A part of the pod dies while the container runs.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::ConnectResponse;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::case::PATIENCE;
use tests::command::run;
use tests::operator;
use tests::shim::status_name;
use tests::{Case, Context, Result, check, check_eq, eventually, fail};

use crate::listed;

listed! {
    all: [
        the_reported_pid_is_gone_soon_after_wait_is_answered,
    ],
    ours: [
        a_killed_shim_is_cleaned_up_after_by_its_delete_action,
        a_container_exits_when_its_qemu_is_killed,
        a_shim_that_is_told_to_shut_down_while_a_container_runs_stays,
        a_client_that_is_killed_during_a_create_leaves_nothing,
        a_guest_that_panics_ends_with_its_sandbox_and_leaves_a_core,
        a_guest_of_several_processors_lives_through_changes_of_its_kernels_code,
    ]
}

/// clients look for the pid right after `Wait`, and wrongly report a process that does not end.
fn the_reported_pid_is_gone_soon_after_wait_is_answered(case: &Case<'_>) -> Result<()> {
    case.container("pid").detach(["sleep", "1000"])?;
    let task = case.shim_of("pid")?;
    let pid = raw_pid(task.state("")?.pid)?;
    check_eq!(kill(pid, None), Ok(()), "the pid before");
    task.kill("", 9)?;
    check_eq!(task.wait("")?, 137, "status");
    // The exit is told even if the machine's processes are slow to die, so this is not at once.
    eventually(Duration::from_secs(5), || {
        check_eq!(kill(pid, None), Err(Errno::ESRCH), "the pid {pid} after the exit");
        Ok(())
    })
}

/// containerd sees the connection end and runs the `delete` action; it makes up the exit that was never told.
fn a_killed_shim_is_cleaned_up_after_by_its_delete_action(case: &Case<'_>) -> Result<()> {
    case.container("orphan").detach(["sleep", "1000"])?;
    let shim = case.shim_of("orphan")?.plain::<ConnectResponse>("Connect")?.shim_pid;
    kill(raw_pid(shim)?, Signal::SIGKILL)?;
    let exit = |line: &str| line.contains(&format!(" {} ", case.namespace)) && line.contains("/tasks/exit");
    let line = case.world.events().log.wait_for(PATIENCE, exit)?;
    check!(line.contains("137"), "the status in the event: {line}");
    case.suspects().expect_nothing()
}

/// containerd gives the create up with its client, and asks the shim to end before it closes the connection.
fn a_client_that_is_killed_during_a_create_leaves_nothing(case: &Case<'_>) -> Result<()> {
    let cold = case.configuration(|file| {
        file.set("factory.enable_template", false);
    })?;
    // One of these moments is before QEMU is there, the others while the guest boots.
    for (id, after) in [("early", 200), ("boot", 900), ("later", 1800)] {
        let mut client = case.container(id).configured(&cold).command(["sleep", "1000"])?.spawn()?;
        std::thread::sleep(Duration::from_millis(after));
        client.kill()?;
        client.wait()?;
        // On a machine so fast that the create was over, the task is there to stay, as it is by any runtime.
        case.ctr(["task", "rm", "-f", id])?;
        case.suspects().expect_nothing().context(id)?;
    }
    Ok(())
}

fn a_container_exits_when_its_qemu_is_killed(case: &Case<'_>) -> Result<()> {
    exits_when_killed(case, "qemu", "qemu-system")
}

fn exits_when_killed(case: &Case<'_>, id: &str, program: &str) -> Result<()> {
    case.container(id).detach(["sleep", "1000"])?;
    let task = case.shim_of(id)?;
    let shim = task.plain::<ConnectResponse>("Connect")?.shim_pid;
    let victim = child_named(shim, program)?;
    let waiting = case.shim_of(id)?;
    let (status, took) = std::thread::scope(|scope| {
        let wait = scope.spawn(|| waiting.wait(""));
        let began = Instant::now();
        kill(victim, Signal::SIGKILL)?;
        let status = wait.join().map_err(|_| tests::Failure::new("the wait panicked"))?;
        Ok::<_, tests::Failure>((status.context("Wait")?, began.elapsed()))
    })?;
    check!(status == 137 || status == 255, "status {status}");
    check!(took < Duration::from_secs(5), "it took {took:?} to notice");
    check_eq!(status_name(&task.state("")?), "STOPPED", "status");
    let exit = |line: &str| line.contains(&format!(" {} ", case.namespace)) && line.contains("/tasks/exit");
    case.world.events().log.wait_for(Duration::from_secs(5), exit)?;
    case.ctr(["task", "delete", id])?.exits(0)?;
    case.ctr(["container", "rm", id])?.exits(0).map(|_| ())
}

fn a_shim_that_is_told_to_shut_down_while_a_container_runs_stays(case: &Case<'_>) -> Result<()> {
    let task = case.world.shared()?.shim_of(tests::world::SHARED)?;
    task.shutdown()?;
    check_eq!(status_name(&task.state("")?), "RUNNING", "status");
    Ok(())
}

/// The child of `parent` whose program's name begins with `name`.
pub(crate) fn child_named(parent: u32, name: &str) -> Result<Pid> {
    let threads = fs::read_dir(format!("/proc/{parent}/task"))?.flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    for list in lists {
        for pid in list.split_whitespace() {
            let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if program.starts_with(name) {
                return raw_pid(pid.parse()?);
            }
        }
    }
    fail!("the shim {parent} has no child {name}")
}

fn raw_pid(pid: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(pid)?))
}

const DAY: f64 = 86400.0;

/// When the first line of a log with `part` was written, in seconds since the day's midnight.
fn log_time(log: &str, part: &str) -> Result<f64> {
    let line = log.lines().find(|line| line.contains(part)).context(part)?;
    let (_, time) = line.split_once('T').context(line)?;
    let mut parts = time.split(['Z', ':']).map(str::parse::<f64>);
    let mut next = || -> Result<f64> { Ok(parts.next().context(line)??) };
    Ok((next()? * 60.0 + next()?) * 60.0 + next()?)
}

/// B6: the memory is kept, and containerd need not wait for that.
fn a_guest_that_panics_ends_with_its_sandbox_and_leaves_a_core(case: &Case<'_>) -> Result<()> {
    let dumps = case.dir().join("dumps");
    let file = operator::written(case.world.assets(), &case.dir(), "panic.toml", |configuration| {
        configuration.set("hypervisor.qemu.guest_memory_dump_path", operator::path(&dumps));
        configuration.set("hypervisor.qemu.default_memory", 256);
    })?;
    // The driver that tells of a panic may be loaded after the first container's start.
    let crash = "until [ -e /sys/bus/acpi/devices/QEMU0001:00/physical_node/driver ]; do sleep 0.1; done; \
                 echo c >/proc/sysrq-trigger; sleep 1000";
    case.container("panic").configured(&file).flags(["--privileged"]).detach(["sh", "-c", crash])?;
    let exit = |line: &str| line.contains(&format!(" {} ", case.namespace)) && line.contains("/tasks/exit");
    case.world.events().log.wait_for(PATIENCE, exit)?;
    let told = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() % DAY;
    let log = case.log();
    check!(
        log.contains("the guest's kernel panicked: sysrq triggered crash"),
        "the reason is not in the log"
    );
    let after = (told - log_time(&log, "event=GUEST_PANICKED")?).rem_euclid(DAY);
    check!(after < 2.0, "containerd told of the end {after} s after the panic");
    case.ctr(["task", "delete", "panic"])?;
    case.ctr(["container", "rm", "panic"])?.exits(0)?;
    case.suspects().expect_nothing()?;
    let kept: Vec<_> = fs::read_dir(dumps.join("panic"))?.flatten().map(|entry| entry.path()).collect();
    for name in ["hypervisor.conf", "hypervisor.version", "hypervisor.state"] {
        let file = kept.iter().find(|path| path.ends_with(name)).context(name)?;
        check!(!fs::read(file)?.is_empty(), "{name} is empty");
    }
    let core =
        kept.into_iter().find(|path| path.extension().is_some_and(|end| end == "elf")).context("a core")?;
    let headers = run(Command::new("readelf").args(["-l", "-W"]).arg(&core), PATIENCE)?.exits(0)?.out();
    check!(headers.contains("CORE") && headers.contains("LOAD"), "the core: {headers}");
    Ok(())
}

/// Linux rewrites its own code when the first limit of CPU time comes and when the last one goes, while other processors
/// run it: emulated ones must not run what is no longer there.
fn a_guest_of_several_processors_lives_through_changes_of_its_kernels_code(case: &Case<'_>) -> Result<()> {
    let file = operator::written(case.world.assets(), &case.dir(), "two.toml", |configuration| {
        configuration.set("hypervisor.qemu.default_vcpus", 2);
    })?;
    let changes = "mkdir /c; mount -t cgroup2 none /c; mkdir /c/a; echo $$ >/c/a/cgroup.procs; \
                   echo +cpu >/c/cgroup.subtree_control; nproc; \
                   (while :; do :; done) & (while :; do cat /proc/stat >/dev/null; done) & \
                   end=$(($(cut -d. -f1 /proc/uptime) + 8)); \
                   while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do \
                   echo 500000 500000 >/c/a/cpu.max; echo max >/c/a/cpu.max; done";
    let container = case.container("changes").configured(&file).flags(["--privileged"]);
    let output = container.run(["sh", "-ec", changes])?.exits(0)?;
    check_eq!(output.out().trim(), available_parallelism()?.get().min(2).to_string(), "processors");
    Ok(())
}
