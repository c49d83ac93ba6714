//! What a container finds inside: identity, privileges, limits.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::bundle::{process, spec};
use tests::shim::Shim;
use tests::{Case, Context, Result, check, check_eq};
use vmm::accelerator::{self, Accelerator, Choice};

use crate::exec::field;
use crate::listed;

listed! {
    all: [
        a_container_finds_what_its_spec_asks_for,
        the_default_seccomp_profile_filters_and_no_new_privs_is_set,
        a_process_over_the_memory_limit_is_killed_and_an_oom_event_is_published,
        a_process_does_without_capabilities_that_nobody_knows,
    ],
    ours: [
        the_guest_runs_a_kernel_of_its_own,
        the_guests_clock_is_as_fast_as_the_hosts,
        the_guests_timer_is_as_fast_as_its_kernel_takes_it_for,
    ]
}

/// One container with everything a spec can ask for, looked at by one process after the other.
fn a_container_finds_what_its_spec_asks_for(case: &Case<'_>) -> Result<()> {
    let spec = asked(case);
    let shim = case.shim("inside", &spec)?;
    shim.create(None).context("Create")?;
    shim.task.start("").context("Start")?;
    let inside = Inside { case, shim: &shim, spec: &spec };
    inside.is_itself()?;
    inside.has_the_privileges_of_its_spec()?;
    inside.is_under_its_seccomp_profile()?;
    inside.cannot_see_masked_paths()?;
    inside.cannot_pass_its_pids_limit()?;
    shim.task.kill("", 9).context("Kill")?;
    check_eq!(shim.task.wait("").context("Wait")?, 137, "status");
    shim.end()
}

fn asked(case: &Case<'_>) -> Value {
    let mut spec = spec(case.world, &case.namespace, "inside", &["sleep", "1000"]);
    let some = json!(["CAP_CHOWN", "CAP_NET_RAW"]);
    spec["hostname"] = json!("a-name-of-its-own");
    spec["process"]["capabilities"] =
        json!({ "bounding": some, "effective": some, "permitted": some, "inheritable": [], "ambient": [] });
    spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 123, "hard": 456 }]);
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }],
    });
    spec["linux"]["resources"]["pids"] = json!({ "limit": 24 });
    spec["linux"]["resources"]["memory"] = json!({ "limit": 128 << 20 });
    spec["linux"]["maskedPaths"] = json!(["/proc/timer_list", "/proc/kcore", "/sys/firmware"]);
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_default_ttl": "77" });
    spec
}

struct Inside<'a> {
    case: &'a Case<'a>,
    shim: &'a Shim,
    spec: &'a Value,
}

impl Inside<'_> {
    fn sh(&self, name: &str, script: &str) -> Result<String> {
        let process = process(self.spec, &["sh", "-c", script]);
        let (status, out, err) = self.shim.task.exec_to_end(&self.case.dir(), name, &process)?;
        check_eq!((status, err.as_str()), (0, ""), "status and stderr of `{script}`");
        Ok(out)
    }

    fn is_itself(&self) -> Result<()> {
        let seen = self.sh(
            "self",
            "hostname; tr '\\0' ' ' < /proc/1/cmdline; echo; cat /proc/sys/net/ipv4/ip_default_ttl",
        )?;
        check_eq!(seen, "a-name-of-its-own\nsleep 1000 \n77\n", "hostname, PID 1 and a sysctl");
        let mounts = self.sh("mounts", "awk '{print $2, $3}' /proc/mounts")?;
        for mount in
            ["/proc proc", "/dev tmpfs", "/dev/pts devpts", "/dev/shm tmpfs", "/sys sysfs", "/run tmpfs"]
        {
            check!(mounts.lines().any(|line| line == mount), "no mount `{mount}` in: {mounts}");
        }
        Ok(())
    }

    fn has_the_privileges_of_its_spec(&self) -> Result<()> {
        let status = self.sh("status", "cat /proc/1/status")?;
        // CAP_CHOWN is bit 0, CAP_NET_RAW bit 13.
        for set in ["CapBnd", "CapPrm", "CapEff"] {
            check_eq!(field(&status, set), "0000000000002001", "{set} of PID 1");
        }
        check_eq!(field(&status, "CapAmb"), "0000000000000000", "CapAmb of PID 1");
        check_eq!(field(&status, "NoNewPrivs"), "1", "NoNewPrivs of PID 1");
        let limits = self.sh("limits", "grep 'open files' /proc/1/limits")?;
        let limits: Vec<&str> = limits.split_whitespace().collect();
        check!(limits.windows(2).any(|pair| pair == ["123", "456"]), "limits of PID 1: {limits:?}");
        Ok(())
    }

    fn is_under_its_seccomp_profile(&self) -> Result<()> {
        let status = self.sh("seccomp", "cat /proc/1/status; mkdir /tmp/dir 2>&1 || true")?;
        check_eq!(field(&status, "Seccomp"), "2", "seccomp mode of PID 1");
        check!(status.contains("not supported"), "mkdir was not refused by the profile: {status}");
        Ok(())
    }

    fn cannot_see_masked_paths(&self) -> Result<()> {
        let script = "wc -c < /proc/timer_list; ls /sys/firmware | wc -l; \
                      (echo 1 > /proc/sys/kernel/panic) 2>&1 || true";
        let seen = self.sh("masked", script)?;
        check!(seen.starts_with("0\n0\n"), "masked paths have content: {seen}");
        check!(seen.contains("Read-only"), "/proc/sys is writable: {seen}");
        Ok(())
    }

    fn cannot_pass_its_pids_limit(&self) -> Result<()> {
        let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; \
                      do sleep 3 & done; wait";
        let process = process(self.spec, &["sh", "-c", script]);
        let (_, _, err) = self.shim.task.exec_to_end(&self.case.dir(), "forks", &process)?;
        check!(err.contains("fork"), "thirty processes under a limit of 24: {err}");
        Ok(())
    }
}

fn the_default_seccomp_profile_filters_and_no_new_privs_is_set(case: &Case<'_>) -> Result<()> {
    let output =
        case.container("seccomp").flags(["--seccomp"]).run(["cat", "/proc/self/status"])?.exits(0)?;
    check_eq!(field(&output.out(), "Seccomp"), "2", "seccomp mode");
    check_eq!(field(&output.out(), "NoNewPrivs"), "1", "NoNewPrivs");
    // containerd's default set of fourteen capabilities.
    check_eq!(field(&output.out(), "CapEff"), "00000000a80425fb", "CapEff");
    check_eq!(field(&output.out(), "CapBnd"), "00000000a80425fb", "CapBnd");
    Ok(())
}

fn a_process_over_the_memory_limit_is_killed_and_an_oom_event_is_published(case: &Case<'_>) -> Result<()> {
    let limit = (32 << 20).to_string();
    let command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"];
    case.container("oom").flags(["--memory-limit", &limit]).run(command)?.exits(137)?;
    let oom = |line: &str| line.contains(&format!(" {} ", case.namespace)) && line.contains("/tasks/oom");
    let line = case.world.events().log.wait_for(Duration::from_secs(5), oom)?;
    check!(line.contains("\"oom\""), "the event does not name its container: {line}");
    Ok(())
}

fn a_process_does_without_capabilities_that_nobody_knows(case: &Case<'_>) -> Result<()> {
    let mut spec = spec(case.world, &case.namespace, "future", &["sleep", "1000"]);
    let (some, none) = (json!(["CAP_KILL", "CAP_FUTURE"]), json!(["CAP_FUTURE"]));
    spec["process"]["capabilities"] = json!({ "bounding": some, "effective": some, "permitted": some, "inheritable": none, "ambient": none });
    let shim = case.shim("future", &spec)?;
    shim.create(None).context("Create")?;
    shim.task.start("").context("Start")?;
    let process = process(&spec, &["sh", "-c", "cat /proc/1/status; cat /proc/self/status"]);
    let (status, out, err) = shim.task.exec_to_end(&case.dir(), "exec", &process)?;
    check_eq!((status, err.as_str()), (0, ""), "status and stderr of the exec");
    for set in ["CapBnd", "CapPrm", "CapEff", "CapAmb"] {
        let wanted = if set == "CapAmb" { "" } else { "20" };
        let has = out.lines().filter_map(|line| line.strip_prefix(set)?.strip_prefix(':'));
        let has: Vec<&str> = has.map(|set| set.trim().trim_start_matches('0')).collect();
        check_eq!(has, [wanted; 2], "{set} of PID 1 and of an exec");
    }
    shim.task.kill("", 9).context("Kill")?;
    check_eq!(shim.task.wait("").context("Wait")?, 137, "status");
    shim.end()
}

fn the_guest_runs_a_kernel_of_its_own(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let guest = shared.exec(tests::world::SHARED, &[], &["uname", "-r"])?.exits(0)?.out();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    check!(guest.trim() != host.trim(), "guest and host both run {host}");
    Ok(())
}

fn in_the_guest(case: &Case<'_>, file: &str) -> Result<String> {
    Ok(case.world.shared()?.exec(tests::world::SHARED, &[], &["cat", file])?.exits(0)?.out())
}

/// How long the guest says that it runs.
fn seconds(case: &Case<'_>) -> Result<f64> {
    Ok(in_the_guest(case, "/proc/uptime")?.split(' ').next().context("a number")?.parse()?)
}

/// One that is wrong ends waits too early, or too late.
fn the_guests_clock_is_as_fast_as_the_hosts(case: &Case<'_>) -> Result<()> {
    if accelerator::detect(Choice::Auto)?.accelerator == Accelerator::Tcg {
        let line = in_the_guest(case, "/proc/cmdline")?;
        for told in [" tsc_early_khz=", " lapic.timer_hz="] {
            check!(line.contains(told), "the guest measures what it could be told: {line}");
        }
    }
    let before = Instant::now();
    let first = seconds(case)?;
    let between = Instant::now();
    sleep(Duration::from_secs(2));
    let least = between.elapsed().as_secs_f64();
    let passed = seconds(case)? - first;
    let most = before.elapsed().as_secs_f64();
    check!(passed > least * 0.99 - 0.01 && passed < most * 1.01 + 0.01, "{passed} s in {least} to {most} s");
    Ok(())
}

/// A timer that is slower than its kernel takes it for ends waits too late. A busy host may do so once, or twice.
fn the_guests_timer_is_as_fast_as_its_kernel_takes_it_for(case: &Case<'_>) -> Result<()> {
    let script = "for i in 1 2 3 4 5; do cut -d ' ' -f 1 /proc/uptime; sleep 0.5; done";
    let times = case.world.shared()?.exec(tests::world::SHARED, &[], &["sh", "-c", script])?.exits(0)?.out();
    let times = times.lines().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let shortest = times.windows(2).map(|pair| pair[1] - pair[0]).reduce(f64::min).context("times")?;
    check!((0.49..0.75).contains(&shortest), "a wait of 0.5 s takes {shortest} s: {times:?}");
    Ok(())
}
