//! The answer to every call in every state, right or wrong for it: the same as runc's shim gives.
//!
//! The files in `golden/` were recorded from runc's shim by running this file with `KATA_TEST_RECORD=1` and
//! `KATA_TEST_RUNTIME=io.containerd.runc.v2`. Where this
//! project's answer may differ, the files say so by hand: `A or B` accepts both, `? ` before a line makes it optional.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api;
use serde_json::Value;
use tests::bundle::{process, spec};
use tests::shim::{Answer, Shim, status_name};
use tests::{Case, Context, Result, fail};

use crate::listed;

listed! {
    all: [
        every_call_in_every_state_is_answered_as_runc_does,
        a_container_killed_before_its_start_is_answered_as_runc_does,
        a_container_deleted_before_its_start_is_answered_as_runc_does,
    ],
    ours: []
}

fn every_call_in_every_state_is_answered_as_runc_does(case: &Case<'_>) -> Result<()> {
    let mut table = Table::new(case, "life", &["sleep", "1000"])?;
    table.asks(
        "unknown",
        &["State", "Start", "Kill", "Delete", "Exec", "Wait", "Pids", "Pause", "Resume", "Stats"],
    );
    table.asks("unknown", &["CloseIO", "ResizePty", "Update", "Connect", "Checkpoint"]);
    table.asks("created", &["Create", "Create", "State", "Pids", "Pause", "Resume", "Stats", "Connect"]);
    table.asks("created", &["Exec e0", "State e0", "Delete e0", "State e0"]);
    table.asks("running", &["Start", "State", "Start", "Create", "Delete", "Resume", "Pids", "Stats"]);
    table
        .asks("running", &["State ?", "Start ?", "Kill ?", "Delete ?", "Wait ?", "CloseIO ?", "ResizePty ?"]);
    table.asks("running", &["Exec e1", "Exec e1", "State e1", "Kill e1", "Start e1", "Start e1", "State e1"]);
    table.asks(
        "running",
        &["Delete e1", "Kill e1", "Wait e1", "State e1", "Kill e1", "Start e1", "ResizePty e1"],
    );
    table.asks(
        "running",
        &["CloseIO e1", "Exec e1", "Delete e1", "Delete e1", "State e1", "Kill e1", "Wait e1"],
    );
    table.asks(
        "running",
        &["Exec e2", "Delete e2", "State e2", "Exec !missing", "Start !missing", "State !missing"],
    );
    table.asks("running", &["Wait !missing", "Delete !missing", "Kill 99"]);
    table.asks(
        "paused",
        &["Pause", "State", "Pause", "Start", "Delete", "Exec e3", "Start e3", "Pids", "Stats"],
    );
    table.asks("paused", &["Resume", "State"]);
    table.asks("stopped", &["Kill", "Wait", "State", "Wait", "Start", "Kill", "Kill 15", "Pause", "Resume"]);
    table.asks(
        "stopped",
        &["Exec e4", "Start e4", "Pids", "Stats", "Create", "CloseIO", "ResizePty", "Connect"],
    );
    table.asks("deleted", &["Delete", "Delete", "State", "Start", "Kill", "Exec", "Wait", "Pids", "Pause"]);
    table.conclude("life")
}

fn a_container_killed_before_its_start_is_answered_as_runc_does(case: &Case<'_>) -> Result<()> {
    let mut table = Table::new(case, "unstarted", &["sleep", "1000"])?;
    table.asks("created", &["Create", "Kill", "Wait", "State", "Start", "Kill", "Delete", "State"]);
    table.conclude("unstarted")
}

fn a_container_deleted_before_its_start_is_answered_as_runc_does(case: &Case<'_>) -> Result<()> {
    let mut table = Table::new(case, "unused", &["sleep", "1000"])?;
    table.asks("created", &["Create", "Delete", "State", "Start", "Kill"]);
    table.conclude("unused")
}

/// The lines that one container's life comes to.
struct Table {
    shim: Shim,
    spec: Value,
    lines: Vec<String>,
}

impl Table {
    fn new(case: &Case<'_>, id: &str, args: &[&str]) -> Result<Table> {
        let spec = spec(case.world, &case.namespace, id, args);
        let shim = case.shim(id, &spec)?;
        Ok(Table { shim, spec, lines: Vec::new() })
    }

    /// Makes the calls one after the other; `state` is what the calls before have led to.
    fn asks(&mut self, state: &str, calls: &[&str]) {
        for call in calls {
            let answer = self.answer(call);
            self.lines.push(format!("{state} | {call} | {answer}"));
        }
    }

    fn answer(&self, call: &str) -> String {
        let (verb, object) = call.split_once(' ').unwrap_or((call, ""));
        let exec = match object {
            "99" | "15" => "",
            "?" => "no-such-exec",
            name => name.trim_start_matches('!'),
        };
        let task = &self.shim.task;
        match verb {
            "State" => {
                said(task.state(exec).map(|state| format!("{} {}", status_name(&state), state.exit_status)))
            }
            "Start" => said(task.start(exec).map(|pid| if pid > 0 { "pid" } else { "no pid" })),
            "Kill" => said(task.kill(exec, object.parse().unwrap_or(9)).map(|()| "")),
            "Delete" => said(task.delete(exec)),
            "Wait" => said(task.wait(exec)),
            "Exec" => said(task.exec(exec, &self.process(object), None).map(|()| "")),
            "CloseIO" => said(task.close_stdin(exec).map(|()| "")),
            "ResizePty" => said(task.resize(exec, 80, 24).map(|()| "")),
            "Create" => said(self.shim.create(None).map(|pid| if pid > 0 { "pid" } else { "no pid" })),
            "Pids" => said(
                task.plain::<api::PidsResponse>(verb)
                    .map(|all| if all.processes.is_empty() { "none" } else { "some" }),
            ),
            "Stats" => said(task.plain::<api::StatsResponse>(verb).map(|_| "")),
            "Connect" => said(task.plain::<api::ConnectResponse>(verb).map(|_| "")),
            other => said(task.plain::<api::Empty>(other).map(|_| "")),
        }
    }

    fn process(&self, object: &str) -> Value {
        match object {
            "!missing" => process(&self.spec, &["no-such-command"]),
            _ => process(&self.spec, &["sleep", "1000"]),
        }
    }

    /// Compares with what was recorded under `section`, or records it.
    fn conclude(mut self, section: &str) -> Result<()> {
        let deleted = |line: &str| line.starts_with("/tasks/delete");
        self.shim.events.log.wait_for(Duration::from_secs(10), deleted).context("the events")?;
        let events = self.shim.events.log.with("").into_iter();
        // runc's shim takes the end of a cgroup v1 for an event of its memory controller.
        let events = events.filter(|line| !line.starts_with("/tasks/oom"));
        self.lines.extend(events.map(|line| format!("event | {line}")));
        let _ = self.shim.task.shutdown();
        let file = golden(section);
        if std::env::var_os("KATA_TEST_RECORD").is_some() {
            let head = "# <state> | <call> | <answer>, from containerd-shim-runc-v2 by KATA_TEST_RECORD=1";
            fs::write(&file, format!("{head}\n{}\n", self.lines.join("\n"))).context(file.display())?;
            return Ok(());
        }
        let golden = fs::read_to_string(&file).context(file.display())?;
        let golden: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
        let differences = differences(&golden, &self.lines);
        if differences.is_empty() { Ok(()) } else { fail!("{}", differences.join("\n")) }
    }
}

fn golden(section: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("e2e/golden/{section}.txt"))
}

fn said<T: Debug>(answer: Answer<T>) -> String {
    match answer {
        Ok(value) => format!("OK {value:?}").replace("\"", "").trim_end().to_owned(),
        Err(refusal) => refusal.code,
    }
}

fn differences(wanted: &[&str], seen: &[String]) -> Vec<String> {
    let mut differences = Vec::new();
    let mut seen = seen.iter().map(String::as_str).peekable();
    for line in wanted {
        let (line, optional) = line.strip_prefix("? ").map_or((*line, false), |line| (line, true));
        if seen.next_if(|seen| accepts(line, seen)).is_none() && !optional {
            differences.push(format!("wanted {line}, saw {}", seen.next().unwrap_or("nothing")));
        }
    }
    differences.extend(seen.map(|line| format!("wanted nothing, saw {line}")));
    differences
}

/// `a | b | X or Y` accepts `a | b | X` and `a | b | Y`.
///
/// `UNKNOWN` is what runc's shim answers where it has not classified an error: a refusal with a better code is as good,
/// but for `NOT_FOUND`, which containerd takes for success in some calls.
fn accepts(wanted: &str, seen: &str) -> bool {
    let (Some((place, answers)), Some((asked, answer))) =
        (wanted.rsplit_once(" | "), seen.rsplit_once(" | "))
    else {
        return wanted == seen;
    };
    let classified = ["ALREADY_EXISTS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "UNAVAILABLE", "INTERNAL"];
    let same = |one: &str| one == answer || (one == "UNKNOWN" && classified.contains(&answer));
    place == asked && answers.split(" or ").any(same)
}
