//! The verbs of a container's life through `ctr`, and the events they make.

use containerd_shim_protos::api::ConnectResponse;
use serde_json::Value;
use tests::assets::KATA;
use tests::case::PATIENCE;
use tests::command::start;
use tests::world::SHARED;
use tests::{Case, Context, Result, check, check_eq};

use crate::listed;

listed! {
    all: [
        a_detached_container_is_listed_paused_resumed_measured_and_killed,
        a_running_container_is_removed_by_force,
        an_attached_client_sees_the_output_and_the_status,
        a_container_killed_from_outside_ends_with_137_and_its_stdio_ends,
        the_limits_of_a_running_container_change,
    ],
    ours: [
        s_d1_no_core_file_of_the_shim_would_have_the_guests_memory,
        containerd_2_is_told_what_the_runtime_is,
    ]
}

fn a_detached_container_is_listed_paused_resumed_measured_and_killed(case: &Case<'_>) -> Result<()> {
    case.container("life").detach(["sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done"])?;
    check_eq!(status(case, "life")?, "RUNNING", "status after the start");
    case.ctr(["task", "pause", "life"])?.exits(0)?;
    check_eq!(status(case, "life")?, "PAUSED", "status after pause");
    case.ctr(["task", "resume", "life"])?.exits(0)?;
    check_eq!(status(case, "life")?, "RUNNING", "status after resume");
    let processes = case.ctr(["task", "ps", "life"])?.exits(0)?.out();
    check!(processes.lines().count() >= 2, "ps shows no process: {processes}");
    measured(case)?;
    case.exec("life", &[], &["true"])?.exits(0)?;
    case.ctr(["task", "kill", "-s", "SIGTERM", "life"])?.exits(0)?;
    case.world.events().log.wait_for(PATIENCE, exit_of(case))?;
    check_eq!(status(case, "life")?, "STOPPED", "status after the kill");
    let deleted = case.ctr(["task", "delete", "life"])?;
    check!(
        deleted.err().contains("exit code 9"),
        "ctr task delete does not show the status: {}",
        deleted.err()
    );
    case.ctr(["container", "delete", "life"])?.exits(0)?;
    in_order(case)
}

fn status(case: &Case<'_>, id: &str) -> Result<String> {
    let list = case.ctr(["task", "ls"])?.exits(0)?.out();
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(id)).unwrap_or_default();
    Ok(line.split_whitespace().last().unwrap_or("missing").to_owned())
}

fn exit_of(case: &Case<'_>) -> impl Fn(&str) -> bool {
    let namespace = format!(" {} ", case.namespace);
    move |line| line.contains(&namespace) && line.contains("/tasks/exit") && line.contains("\"id\":\"life\"")
}

/// containerd decodes the statistics by their type, and `ctr` prints them as a table.
fn measured(case: &Case<'_>) -> Result<()> {
    let metrics = case.ctr(["task", "metrics", "life"])?.exits(0)?.out();
    let number = |name: &str| {
        let line = metrics.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.and_then(|line| line.split_whitespace().nth(1)).and_then(|value| value.parse::<u64>().ok())
    };
    let memory = number("memory.usage_in_bytes").or_else(|| number("memory.usage"));
    let cpu = number("cpuacct.usage").or_else(|| number("cpu.usage_usec"));
    let pids = number("pids.current");
    check!(memory.is_some_and(|bytes| bytes > 0), "no memory in the metrics: {metrics}");
    check!(cpu.is_some_and(|time| time > 0), "no CPU time in the metrics: {metrics}");
    check!(pids.is_some_and(|count| count > 0), "no pids in the metrics: {metrics}");
    Ok(())
}

fn in_order(case: &Case<'_>) -> Result<()> {
    let all = case.world.events().log.with(&format!(" {} ", case.namespace));
    let topics: Vec<&str> = all
        .iter()
        .filter_map(|line| line.split_whitespace().find_map(|word| word.strip_prefix("/tasks/")))
        .collect();
    let wanted =
        ["create", "start", "paused", "resumed", "exec-added", "exec-started", "exit", "exit", "delete"];
    check_eq!(topics, wanted, "topics of the events in their order");
    let last = all.iter().rfind(|line| line.contains("/tasks/delete")).cloned().unwrap_or_default();
    check!(last.contains("\"exit_status\":9"), "the status in the last event: {last}");
    Ok(())
}

fn a_running_container_is_removed_by_force(case: &Case<'_>) -> Result<()> {
    case.container("forced").detach(["sleep", "1000"])?;
    case.ctr(["task", "rm", "-f", "forced"])?;
    check_eq!(case.ctr(["task", "ls", "-q"])?.exits(0)?.out(), "", "tasks after rm -f");
    case.ctr(["container", "rm", "forced"])?.exits(0).map(|_| ())
}

fn an_attached_client_sees_the_output_and_the_status(case: &Case<'_>) -> Result<()> {
    let fifos = case.dir().join("fifos");
    let script =
        "while [ ! -e /go ]; do sleep 0.1; done; echo came out; echo went wrong >&2; sleep 1; exit 7";
    let flags = ["--fifo-dir", &fifos.to_string_lossy()].map(str::to_owned);
    case.container("attach").flags(flags.iter().map(String::as_str)).detach(["sh", "-c", script])?;
    let attached = start(&mut case.ctr_command(["task", "attach", "attach"]), Vec::new())?;
    case.exec("attach", &[], &["touch", "/go"])?.exits(0)?;
    let output = attached.wait(PATIENCE)?.exits(7)?;
    check_eq!(output.out(), "came out\n", "stdout of attach");
    check_eq!(output.err(), "went wrong\n", "stderr of attach");
    Ok(())
}

fn a_container_killed_from_outside_ends_with_137_and_its_stdio_ends(case: &Case<'_>) -> Result<()> {
    let running = case.container("killed").start(["sh", "-c", "echo ready; sleep 1000"])?;
    let started =
        |line: &str| line.contains(&format!(" {} ", case.namespace)) && line.contains("/tasks/start");
    case.world.events().log.wait_for(PATIENCE, started)?;
    case.ctr(["task", "kill", "-s", "SIGKILL", "killed"])?.exits(0)?;
    let output = running.wait(PATIENCE)?.exits(137)?;
    check!(output.took < PATIENCE, "it took {:?}", output.took);
    Ok(())
}

fn the_limits_of_a_running_container_change(case: &Case<'_>) -> Result<()> {
    use containerd_shim_protos::api;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;
    case.container("update").detach(["sleep", "1000"])?;
    let task = case.shim_of("update")?;
    let resources = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
        value: br#"{"memory":{"limit":67108864},"pids":{"limit":33}}"#.to_vec(),
        ..Default::default()
    };
    let request = api::UpdateTaskRequest {
        id: "update".to_owned(),
        resources: Some(resources).into(),
        ..Default::default()
    };
    task.call::<api::Empty>("Update", &request)?;
    let metrics = case.ctr(["task", "metrics", "update"])?.exits(0)?.out();
    let limited =
        metrics.lines().any(|line| line.starts_with("pids.limit") && line.trim_end().ends_with("33"));
    check!(limited, "the new limit is not in the metrics: {metrics}");
    Ok(())
}

fn s_d1_no_core_file_of_the_shim_would_have_the_guests_memory(case: &Case<'_>) -> Result<()> {
    if std::fs::exists("/dev/vhost-vsock")? {
        return Ok(());
    }
    let shared = case.world.shared()?;
    let shim = shared.shim_of(SHARED)?.plain::<ConnectResponse>("Connect")?.shim_pid;
    let maps = std::fs::read_to_string(format!("/proc/{shim}/smaps"))?;
    let mut lines = maps.lines().skip_while(|line| !line.contains("memfd:memory"));
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags:"));
    let flags = flags.context("the vsock device's mapping of the guest's memory")?;
    check!(flags.split_whitespace().any(|flag| flag == "dd"), "its flags: {flags}");
    Ok(())
}

fn containerd_2_is_told_what_the_runtime_is(case: &Case<'_>) -> Result<()> {
    // Those before do not ask.
    if case.world.assets().generation < 2 {
        return Ok(());
    }
    // Without options for the runtime, and with some.
    for options in [&[][..], &["--runtime-config-path", "/etc/kata-containers/configuration.toml"]] {
        let asked = ["plugins", "inspect-runtime", "--runtime", KATA];
        let info = case.ctr(asked.into_iter().chain(options.iter().copied()))?.exits(0)?.stdout;
        let info: Value = serde_json::from_slice(&info)?;
        check_eq!(info["Name"].as_str(), Some(KATA), "{info}");
        check_eq!(info["Version"]["Version"].as_str(), Some(env!("CARGO_PKG_VERSION")), "{info}");
    }
    Ok(())
}
