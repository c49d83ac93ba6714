//! Limits of containers, when they are made and later.

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use tests::bundle::{process, spec};
use tests::shim::{Answer, Shim};
use tests::{Case, Context, Failure, Result, check, check_eq};

use crate::listed;

listed! {
    all: [
        sets_of_cpus_that_are_none_are_refused,
    ],
    ours: [
        limits_by_the_names_of_cgroup_files_are_carried_out,
        files_that_are_no_limits_are_refused_by_name,
    ]
}

fn update(shim: &Shim, resources: &Value) -> Answer<()> {
    let resources = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
        value: resources.to_string().into_bytes(),
        ..Default::default()
    };
    let id = shim.create_request(None).id;
    let request = api::UpdateTaskRequest { id, resources: Some(resources).into(), ..Default::default() };
    shim.task.call::<api::Empty>("Update", &request).map(drop)
}

/// That an Update is refused in words of which these are some.
fn refused(shim: &Shim, resources: &Value, words: &[&str]) -> Result<()> {
    let Err(error) = update(shim, resources) else {
        return Err(Failure::new(format!("{resources} is no error")));
    };
    let said = error.to_string();
    for word in words {
        check!(said.contains(word), "`{word}` is not in the answer to {resources}: {said}");
    }
    Ok(())
}

fn ended(shim: Shim) -> Result<()> {
    shim.task.kill("", 9).context("Kill")?;
    check_eq!(shim.task.wait("").context("Wait")?, 137, "status");
    shim.end()
}

fn sets_of_cpus_that_are_none_are_refused(case: &Case<'_>) -> Result<()> {
    let mut spec = spec(case.world, &case.namespace, "sets", &["sleep", "1000"]);
    spec["linux"]["resources"]["cpu"] = json!({ "cpus": "0" });
    let shim = case.shim("sets", &spec)?;
    shim.create(None).context("Create")?;
    shim.task.start("").context("Start")?;
    for set in ["0-999999", "abc", "1-0", "0-", "-1", "4294967296"] {
        refused(&shim, &json!({ "cpu": { "cpus": set } }), &[set, "cpus"])?;
    }
    refused(&shim, &json!({ "cpu": { "mems": "abc" } }), &["abc", "mems"])?;
    for set in ["0", "0,", "0-0", "all"] {
        update(&shim, &json!({ "cpu": { "cpus": set } })).context(set)?;
    }
    ended(shim)?;
    spec["linux"]["resources"]["cpu"] = json!({ "cpus": "abc" });
    let shim = case.shim("none", &spec)?;
    let answer = shim.create(None);
    let said = answer.err().map(|error| error.to_string()).unwrap_or_default();
    check!(said.contains("abc") && said.contains("cpus"), "what is said of the set abc in Create: {said:?}");
    Ok(())
}

fn limits_by_the_names_of_cgroup_files_are_carried_out(case: &Case<'_>) -> Result<()> {
    let mut spec = spec(case.world, &case.namespace, "files", &["sleep", "1000"]);
    // What is the host's means nothing to the guest.
    spec["linux"]["resources"]["unified"] = json!({
        "memory.high": "67108864", "pids.max": "44", "cpu.weight": "250", "cpuset.cpus": "0", "io.max": "8:0 rbps=9",
    });
    let cgroup =
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] });
    spec["mounts"].as_array_mut().context("mounts")?.push(cgroup);
    let shim = case.shim("files", &spec)?;
    shim.create(None).context("Create")?;
    shim.task.start("").context("Start")?;
    let mut number = 0;
    let mut has = || {
        number += 1;
        // The container's own cgroup, which no cgroup namespace hides where there is none.
        let script = "d=/sys/fs/cgroup; [ -e $d/memory.high ] || d=$d$(sed -n 's/^0:://p' /proc/1/cgroup); cd $d; \
                      cat memory.high pids.max cpu.weight memory.max";
        let process = process(&spec, &["sh", "-c", script]);
        let (status, out, err) = shim.task.exec_to_end(&case.dir(), &format!("look{number}"), &process)?;
        check_eq!((status, err.as_str()), (0, ""), "status and stderr of a look at the cgroup");
        Ok::<_, Failure>(out)
    };
    check_eq!(has()?, "67108864\n44\n250\nmax\n", "limits after Create");
    update(&shim, &json!({ "unified": { "memory.high": "max", "pids.max": "45" } }))?;
    check_eq!(has()?, "max\n45\n250\nmax\n", "limits after an Update");
    // The kernel refuses the last: all are as they were.
    refused(
        &shim,
        &json!({ "pids": { "limit": 9 }, "unified": { "memory.high": "4096000", "pids.max": "many" } }),
        &["pids.max", "many"],
    )?;
    refused(&shim, &json!({ "unified": { "memory.max": "9", "cgroup.kill": "1" } }), &["cgroup.kill"])?;
    refused(&shim, &json!({ "pids": { "limit": 9 }, "unified": { "../pids.max": "1" } }), &["../pids.max"])?;
    check_eq!(has()?, "max\n45\n250\nmax\n", "limits after Updates that were refused");
    ended(shim)
}

fn files_that_are_no_limits_are_refused_by_name(case: &Case<'_>) -> Result<()> {
    for (number, (file, value, word)) in [
        ("../../cgroup.procs", "1", "slash"),
        ("..", "1", "CONTROLLER.PARAMETER"),
        ("future.max", "1", "no controller future"),
        ("memory.higher", "1", "no such file"),
        ("pids.max", "many", "Invalid argument"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("refused{number}");
        let mut spec = spec(case.world, &case.namespace, &id, &["true"]);
        spec["linux"]["resources"]["unified"] = json!({ file: value });
        let shim = case.shim(&id, &spec)?;
        let answer = shim.create(None);
        let said = answer.err().map(|error| error.to_string()).unwrap_or_default();
        check!(said.contains(file) && said.contains(word), "what is said of {file}: {said:?}");
    }
    Ok(())
}
