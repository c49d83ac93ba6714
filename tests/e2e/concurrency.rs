//! Two virtual machines at once, and one that is asked while another boots.

use std::thread;
use std::time::{Duration, Instant};

use tests::bundle::spec;
use tests::case::PATIENCE;
use tests::shim::{Shim, TaskClient};
use tests::{Case, Context, Failure, Result, check, check_eq};

use crate::listed;

listed! {
    all: [
        two_containers_created_at_once_do_not_disturb_each_other,
        duplicate_creates_at_once_make_one_container,
    ],
    ours: [
        state_kill_and_wait_are_answered_while_virtual_machines_boot,
    ]
}

fn two_containers_created_at_once_do_not_disturb_each_other(case: &Case<'_>) -> Result<()> {
    let says = |id: &str| format!("echo I am {id}; cat; exit {}", id.len());
    let first = case.container("a").stdin("to a\n").start(["sh", "-c", &says("a")])?;
    let second = case.container("bb").stdin("to bb\n").start(["sh", "-c", &says("bb")])?;
    let (first, second) = (first.wait(PATIENCE)?.exits(1)?, second.wait(PATIENCE)?.exits(2)?);
    check_eq!(first.out(), "I am a\nto a\n", "output of the first");
    check_eq!(second.out(), "I am bb\nto bb\n", "output of the second");
    Ok(())
}

fn duplicate_creates_at_once_make_one_container(case: &Case<'_>) -> Result<()> {
    let shim = ready(case, "twice")?;
    let codes: Vec<String> = thread::scope(|scope| {
        let creates: Vec<_> = (0..2).map(|_| scope.spawn(|| shim.create(None))).collect();
        let answers = creates.into_iter().filter_map(|create| create.join().ok());
        answers.map(|answer| answer.map_or_else(|refusal| refusal.code, |_| "OK".to_owned())).collect()
    });
    check_eq!(codes.iter().filter(|code| *code == "OK").count(), 1, "creates that succeeded of {codes:?}");
    shim.task.start("").context("Start of the one")?;
    shim.task.kill("", 9)?;
    check_eq!(shim.task.wait("")?, 137, "status of the one");
    shim.end()
}

/// The bound is a tenth of a boot measured in the same run: whatever waits for a boot fails by far.
fn state_kill_and_wait_are_answered_while_virtual_machines_boot(case: &Case<'_>) -> Result<()> {
    let running = ready(case, "running")?;
    running.create(None).context("Create of the first")?;
    running.task.start("").context("Start of the first")?;
    let booting = ready(case, "booting")?;
    let (slowest, boot) = thread::scope(|scope| {
        let create = scope.spawn(|| {
            let began = Instant::now();
            booting.create(None).map(|_| began.elapsed())
        });
        let mut slowest = Duration::ZERO;
        let asked = booting.connect()?;
        while !create.is_finished() {
            slowest = slowest.max(slowest_answer(&running.task, &asked)?);
        }
        let boot = create.join().map_err(|_| Failure::new("the create panicked"))?;
        Ok::<_, Failure>((slowest, boot.context("Create of the second")?))
    })?;
    check!(slowest < boot / 10, "an answer took {slowest:?} while a boot took {boot:?}");
    for shim in [running, booting] {
        shim.task.kill("", 9)?;
        shim.task.wait("")?;
        shim.end()?;
    }
    Ok(())
}

fn ready(case: &Case<'_>, id: &str) -> Result<Shim> {
    case.shim(id, &spec(case.world, &case.namespace, id, &["sleep", "1000"]))
}

/// One round of questions to a container that runs, and to the shim whose own Create is under way.
fn slowest_answer(running: &TaskClient, booting: &TaskClient) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    let mut timed = |ask: &mut dyn FnMut() -> Result<()>| {
        let began = Instant::now();
        let answer = ask();
        slowest = slowest.max(began.elapsed());
        answer
    };
    timed(&mut || running.state("").map(|_| ()).context("State"))?;
    // Signal 0 reaches nobody: the call goes all the way without a consequence.
    timed(&mut || running.kill("", 0).context("Kill"))?;
    timed(&mut || {
        let refused = running.wait("no-such-exec").err().map(|refusal| refusal.code);
        check_eq!(refused.as_deref(), Some("NOT_FOUND"), "Wait for an unknown exec");
        Ok(())
    })?;
    // Whether the answer is "not found" or "created" depends on how far the other call is; its speed must not.
    timed(&mut || {
        let _ = booting.state("");
        Ok(())
    })?;
    timed(&mut || {
        let _ = booting.wait("no-such-exec");
        Ok(())
    })?;
    thread::sleep(Duration::from_millis(10));
    Ok(slowest)
}
