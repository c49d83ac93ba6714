//! `ctr task exec` and the Exec call.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tests::bundle::{process, spec};
use tests::case::PATIENCE;
use tests::world::SHARED;
use tests::{Case, Failure, Result, check, check_eq, eventually};

use crate::listed;

listed! {
    all: [
        an_exec_has_its_own_directory_and_user,
        an_exec_has_its_own_environment_user_and_groups,
        an_exec_keeps_its_capabilities_and_limits_and_no_new_privs,
        an_exec_without_no_new_privs_does_not_have_it,
        an_exec_of_a_missing_command_fails_with_the_reason_and_the_container_runs_on,
        an_exec_of_a_file_that_is_no_program_fails_and_the_container_runs_on,
        an_exec_in_a_missing_directory_fails_and_the_container_runs_on,
        an_exec_is_killed_by_its_own_id,
        an_exec_in_a_container_that_has_divided_its_cgroup_is_where_its_first_process_is,
        eight_execs_at_once_get_their_own_output,
    ],
    ours: []
}

fn shell(case: &Case<'_>, script: &str) -> Value {
    process(&spec(case.world, &case.namespace, SHARED, &[]), &["sh", "-c", script])
}

/// The value of `field` in the text of /proc/<pid>/status.
pub(crate) fn field(status: &str, field: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or("missing").trim().to_owned()
}

fn an_exec_has_its_own_directory_and_user(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let script = "pwd; id -u; id -g";
    let output = shared.exec(SHARED, &["--cwd", "/tmp", "--user", "1:1"], &["sh", "-c", script])?.exits(0)?;
    check_eq!(output.out(), "/tmp\n1\n1\n", "directory, user and group");
    Ok(())
}

fn an_exec_has_its_own_environment_user_and_groups(case: &Case<'_>) -> Result<()> {
    let task = case.world.shared()?.shim_of(SHARED)?;
    let mut shell = shell(case, "echo $COLOUR-$PATH; pwd; id -u; id -g; id -G");
    shell["env"] = json!(["COLOUR=blue is a colour", "PATH=/bin"]);
    shell["cwd"] = json!("/var");
    shell["user"] = json!({ "uid": 65534, "gid": 65534, "additionalGids": [5, 4242] });
    let (status, out, err) = task.exec_to_end(&case.dir(), "own", &shell)?;
    check_eq!((status, err.as_str()), (0, ""), "status and stderr");
    check_eq!(out, "blue is a colour-/bin\n/var\n65534\n65534\n65534 5 4242\n", "what it saw");
    Ok(())
}

fn an_exec_keeps_its_capabilities_and_limits_and_no_new_privs(case: &Case<'_>) -> Result<()> {
    let task = case.world.shared()?.shim_of(SHARED)?;
    let mut shell = shell(case, "cat /proc/self/status; ulimit -n; ulimit -Sc; ulimit -Sf; ulimit -Hf");
    let some = json!(["CAP_KILL", "CAP_CHOWN"]);
    shell["capabilities"] = json!({ "bounding": some, "effective": ["CAP_KILL"], "permitted": some,
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"] });
    shell["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 99, "hard": 99 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
        { "type": "RLIMIT_FSIZE", "soft": 1 << 20, "hard": 2 << 20 },
    ]);
    shell["noNewPrivileges"] = json!(true);
    let (status, out, err) = task.exec_to_end(&case.dir(), "caps", &shell)?;
    check_eq!((status, err.as_str()), (0, ""), "status and stderr");
    // A root process gains its whole bounding set when it executes a program, which is why CapEff is not CAP_KILL alone.
    for (name, wanted) in [("CapBnd", "21"), ("CapPrm", "21"), ("CapInh", "20"), ("NoNewPrivs", "1")] {
        check_eq!(field(&out, name).trim_start_matches('0'), wanted, "{name}");
    }
    check!(out.ends_with("\n99\n0\n2048\n4096\n"), "limits: {out}");
    Ok(())
}

fn an_exec_without_no_new_privs_does_not_have_it(case: &Case<'_>) -> Result<()> {
    let task = case.world.shared()?.shim_of(SHARED)?;
    let mut shell = shell(case, "cat /proc/self/status");
    shell["noNewPrivileges"] = json!(false);
    shell["user"] = json!({ "uid": 1, "gid": 1 });
    shell["capabilities"] = json!({ "bounding": ["CAP_KILL"], "effective": [], "permitted": [],
        "inheritable": [], "ambient": [] });
    let (_, out, _) = task.exec_to_end(&case.dir(), "privs", &shell)?;
    check_eq!(field(&out, "NoNewPrivs"), "0", "NoNewPrivs");
    check_eq!(field(&out, "CapEff").trim_start_matches('0'), "", "CapEff of a user without capabilities");
    Ok(())
}

fn an_exec_of_a_missing_command_fails_with_the_reason_and_the_container_runs_on(
    case: &Case<'_>,
) -> Result<()> {
    let shared = case.world.shared()?;
    let output = shared.exec(SHARED, &[], &["no-such-command"])?;
    check!(output.status != 0, "status {}", output.status);
    check!(output.took < Duration::from_secs(5), "it took {:?}", output.took);
    let reason = "exec: \"no-such-command\": executable file not found in $PATH";
    check!(output.err().contains(reason), "the reason is missing: {}", output.err());
    runs_on(&shared)
}

fn an_exec_of_a_file_that_is_no_program_fails_and_the_container_runs_on(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let output = shared.exec(SHARED, &[], &["/etc/passwd"])?;
    check!(output.status != 0, "status {}", output.status);
    check!(output.err().contains("ermission denied"), "the reason is missing: {}", output.err());
    runs_on(&shared)
}

fn an_exec_in_a_missing_directory_fails_and_the_container_runs_on(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let output = shared.exec(SHARED, &["--cwd", "/no/such/directory"], &["true"])?;
    check!(output.status != 0, "status {}", output.status);
    check!(output.err().contains("/no/such/directory"), "the reason is missing: {}", output.err());
    runs_on(&shared)
}

fn runs_on(shared: &Case<'_>) -> Result<()> {
    let list = shared.ctr(["task", "ls"])?.out();
    check!(list.contains("RUNNING"), "the container does not run: {list}");
    shared.exec(SHARED, &[], &["true"])?.exits(0).map(|_| ())
}

/// As an init system does, which then holds no process in the container's own cgroup.
fn an_exec_in_a_container_that_has_divided_its_cgroup_is_where_its_first_process_is(
    case: &Case<'_>,
) -> Result<()> {
    // Busy while an exec that looks is not in `inner` yet.
    let divide = "mkdir -p /tmp/cgroup; mount -t cgroup2 none /tmp/cgroup; cd /tmp/cgroup; mkdir inner; \
        echo $$ >inner/cgroup.procs; until echo +pids >cgroup.subtree_control; do sleep 0.1; done; exec sleep 1000";
    let divided = case.container("divided").flags(["--privileged"]).start(["sh", "-ec", divide])?;
    eventually(PATIENCE, || {
        let told = case.exec("divided", &[], &["cat", "/tmp/cgroup/cgroup.subtree_control"])?.exits(0)?;
        check!(told.out().contains("pids"), "controllers: {}", told.out());
        Ok(())
    })?;
    let output = case.exec("divided", &[], &["cat", "/proc/self/cgroup"])?.exits(0)?;
    check_eq!(output.out(), "0::/inner\n", "the exec's cgroup");
    case.ctr(["task", "kill", "-s", "KILL", "divided"])?.exits(0)?;
    divided.wait(PATIENCE)?.exits(137)?;
    Ok(())
}

fn an_exec_is_killed_by_its_own_id(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let task = shared.shim_of(SHARED)?;
    task.exec("sleeper", &shell(case, "exec sleep 1000"), None)?;
    let pid = task.start("sleeper")?;
    check!(pid > 0, "pid {pid}");
    shared.ctr(["task", "kill", "--exec-id", "sleeper", "-s", "SIGTERM", SHARED])?.exits(0)?;
    check_eq!(task.wait("sleeper")?, 143, "status");
    check_eq!(task.delete("sleeper")?, 143, "status again");
    runs_on(&shared)
}

fn eight_execs_at_once_get_their_own_output(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let dir = case.dir();
    let task = shared.shim_of(SHARED)?;
    let tasks = (0..8).map(|i| (i, task.about(SHARED), shell(case, &format!("echo I am {i}; exit {i}"))));
    let results = thread::scope(|scope| {
        let threads = tasks.map(|(i, task, shell)| {
            let dir = &dir;
            scope.spawn(move || task.exec_to_end(dir, &format!("many-{i}"), &shell))
        });
        let threads: Vec<_> = threads.collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| Failure::new("a thread panicked")))
            .collect::<Vec<_>>()
    });
    for (i, result) in results.into_iter().enumerate() {
        let (status, out, _) = result??;
        check_eq!((status, out), (u32::try_from(i)?, format!("I am {i}\n")), "exec {i}");
    }
    Ok(())
}
