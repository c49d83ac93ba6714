//! Hooks of a container's configuration, by which Docker and nerdctl make its network.

use std::fs;

use containerd_shim_protos::api::ConnectResponse;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tests::bundle::{process, spec};
use tests::{Case, Context, Result, check, check_eq};

use crate::listed;

listed! {
    all: [],
    ours: [
        a_network_that_hooks_make_is_the_guests_and_is_freed_after_a_killed_shim,
    ]
}

/// As such hooks do: finds the namespace by the process id in what it reads, and puts an interface into it.
const MAKE: &str = "pid=$(grep -o '\"pid\":[0-9]*' | cut -d: -f2) && nsenter --net=/proc/$pid/ns/net sh -c '\
    ip link add eth0 type veth peer name other && ip addr add 10.99.0.2/24 dev eth0 && ip link set eth0 up'";

fn a_network_that_hooks_make_is_the_guests_and_is_freed_after_a_killed_shim(case: &Case<'_>) -> Result<()> {
    let mut spec = spec(case.world, &case.namespace, "hooked", &["sleep", "1000"]);
    let path = format!("PATH={}", std::env::var("PATH")?);
    let hook = |script: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": [path] }]);
    spec["hooks"] = json!({ "createRuntime": hook(MAKE), "poststop": hook("cat > freed") });
    let shim = case.shim("hooked", &spec)?;
    shim.create(None).context("Create")?;
    shim.task.start("").context("Start")?;
    let ip = process(&spec, &["ip", "addr", "show", "eth0"]);
    let (status, shown, _) = shim.task.exec_to_end(&case.dir(), "ip", &ip)?;
    check!(status == 0 && shown.contains("10.99.0.2/24"), "in the guest: {shown}");
    let freed = shim.bundle.dir.join("freed");
    check!(!freed.exists(), "poststop ran too early");
    let process = shim.task.plain::<ConnectResponse>("Connect").context("Connect")?.shim_pid;
    kill(Pid::from_raw(i32::try_from(process)?), Signal::SIGKILL)?;
    shim.delete_action()?.exits(0)?;
    let state: serde_json::Value = serde_json::from_slice(&fs::read(&freed).context(freed.display())?)?;
    check_eq!((&state["id"], &state["status"]), (&json!("hooked"), &json!("stopped")), "what poststop reads");
    Ok(())
}
