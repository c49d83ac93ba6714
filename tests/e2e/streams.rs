//! Standard streams and exit statuses.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::bundle::{process, spec};
use tests::case::PATIENCE;
use tests::command::{run, start};
use tests::stdio::Fifos;
use tests::world::SHARED;
use tests::{Case, Failure, Result, check, check_eq};

use crate::listed;

listed! {
    all: [
        stdout_and_stderr_of_a_container_arrive_apart_and_complete,
        sixty_four_mebibytes_through_cat_keep_their_digest,
        an_exec_ends_with_the_status_of_its_process,
        the_end_of_stdin_reaches_the_process_and_its_output_stays_open,
        a_large_stdout_and_stderr_of_an_exec_are_complete,
        a_reader_that_never_comes_does_not_hide_the_exit,
        a_slow_reader_gets_all_that_was_written_before_the_exit,
        a_process_without_clients_can_write_and_finds_the_end_of_its_input,
        input_that_ends_before_the_process_runs_ends_for_the_process_too,
        a_process_that_closes_its_input_outlives_what_comes_then,
    ],
    ours: []
}

fn stdout_and_stderr_of_a_container_arrive_apart_and_complete(case: &Case<'_>) -> Result<()> {
    let script = "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; exit 42";
    let output = case.container("apart").run(["sh", "-c", script])?.exits(42)?;
    let lines = |stream: &str| (0..2000).map(|i| format!("{stream} {i}\n")).collect::<String>();
    check!(output.out() == lines("out"), "stdout has {} bytes", output.stdout.len());
    check!(output.err() == lines("err"), "stderr has {} bytes: {}", output.stderr.len(), output.err());
    Ok(())
}

fn sixty_four_mebibytes_through_cat_keep_their_digest(case: &Case<'_>) -> Result<()> {
    const LENGTH: usize = 64 << 20;
    // A linear congruential generator: no two of its blocks are alike, so a lost or doubled one shows.
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()
    };
    let bytes: Vec<u8> = (0..LENGTH / 8).flat_map(|_| next()).collect();
    // As much as 128 MiB through an emulated processor on a machine that may have other work.
    let running = case.container("cat").stdin(bytes.clone()).start(["cat"])?;
    let output = running.wait(4 * PATIENCE)?.exits(0)?;
    let digest = |name: &str, bytes: &[u8]| sha256(&case.dir().join(name), bytes);
    check_eq!(output.stdout.len(), LENGTH, "bytes that came back");
    check_eq!(digest("out", &output.stdout)?, digest("in", &bytes)?, "SHA-256");
    Ok(())
}

fn sha256(file: &Path, bytes: &[u8]) -> Result<String> {
    std::fs::write(file, bytes)?;
    let output = run(Command::new("sha256sum").arg(file), Duration::from_secs(60))?.exits(0)?;
    std::fs::remove_file(file)?;
    Ok(output.out().split_whitespace().next().unwrap_or_default().to_owned())
}

fn an_exec_ends_with_the_status_of_its_process(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let scripts = ["exit 0", "exit 1", "exit 42", "exit 255", "kill -KILL $$", "kill -TERM $$"];
    for (script, wanted) in scripts.into_iter().zip([0, 1, 42, 255, 137, 143]) {
        let output = shared.exec(SHARED, &[], &["sh", "-c", script])?;
        check_eq!(output.status, wanted, "status of `{script}`");
    }
    Ok(())
}

fn the_end_of_stdin_reaches_the_process_and_its_output_stays_open(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let script = "cat; echo end of input; sleep 1; echo still here";
    let args = ["task", "exec", "--exec-id", "half-close", SHARED, "sh", "-c", script];
    let by_ctr = start(&mut shared.ctr_command(args), b"first\n".to_vec())?.wait(PATIENCE)?.exits(0)?;
    check_eq!(by_ctr.out(), "first\nend of input\nstill here\n", "stdout through ctr");

    let task = shared.shim_of(SHARED)?;
    let stdio = Fifos::new(&case.dir(), "half")?;
    let shell = process(&spec(case.world, &case.namespace, SHARED, &[]), &["sh", "-c", script]);
    task.exec("half", &shell, Some(&stdio))?;
    task.start("half")?;
    stdio.feed(b"second\n")?;
    task.close_stdin("half")?;
    check_eq!(task.wait("half")?, 0, "status");
    check_eq!(stdio.output(PATIENCE)?, "second\nend of input\nstill here\n", "stdout by the Task API");
    task.delete("half")?;
    Ok(())
}

fn a_large_stdout_and_stderr_of_an_exec_are_complete(case: &Case<'_>) -> Result<()> {
    const LENGTH: usize = 8 << 20;
    let shared = case.world.shared()?;
    let script = "head -c 8388608 /dev/zero & head -c 8388608 /dev/zero >&2; wait";
    let output = shared.exec(SHARED, &[], &["sh", "-c", script])?.exits(0)?;
    check_eq!((output.stdout.len(), output.stderr.len()), (LENGTH, LENGTH), "bytes of stdout and stderr");
    check!(output.stdout.iter().chain(&output.stderr).all(|&byte| byte == 0), "not all bytes are zero");
    Ok(())
}

/// the exit is the process's, not the end of a stream that nobody reads.
fn a_reader_that_never_comes_does_not_hide_the_exit(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let task = shared.shim_of(SHARED)?;
    let stdio = Fifos::new(&case.dir(), "grandchild")?;
    // The grandchild keeps stdout open after its parent's exit.
    let script = "sleep 20 & exit 5";
    let shell = process(&spec(case.world, &case.namespace, SHARED, &[]), &["sh", "-c", script]);
    task.exec("grandchild", &shell, Some(&stdio))?;
    task.start("grandchild")?;
    let asked = std::time::Instant::now();
    check_eq!(task.wait("grandchild")?, 5, "status");
    check!(asked.elapsed() < Duration::from_secs(15), "the exit took {:?}", asked.elapsed());
    task.delete("grandchild")?;
    Ok(())
}

/// what does not fit anywhere on the way waits for its reader, though the process has gone.
fn a_slow_reader_gets_all_that_was_written_before_the_exit(case: &Case<'_>) -> Result<()> {
    const LENGTH: usize = 700 << 10;
    let shared = case.world.shared()?;
    let task = shared.shim_of(SHARED)?;
    let stdio = Fifos::unread(&case.dir(), "slow")?;
    let shell = process(
        &spec(case.world, &case.namespace, SHARED, &[]),
        &["sh", "-c", "head -c 716800 /dev/zero; exit 3"],
    );
    task.exec("slow", &shell, Some(&stdio))?;
    let path = stdio.stdout.clone();
    let opened = std::thread::spawn(|| std::fs::File::open(path));
    task.start("slow")?;
    let mut out = opened.join().map_err(|_| Failure::new("the reader panicked"))??;
    let (mut read, mut chunk) = (0, vec![0; 32 << 10]);
    while read < LENGTH {
        std::thread::sleep(Duration::from_millis(50));
        match out.read(&mut chunk)? {
            0 => break,
            length => read += length,
        }
    }
    check_eq!(read, LENGTH, "bytes of stdout");
    check_eq!(task.wait("slow")?, 3, "status");
    task.delete("slow")?;
    Ok(())
}

fn a_process_without_clients_can_write_and_finds_the_end_of_its_input(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let task = shared.shim_of(SHARED)?;
    let script = "cat; head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; exit 7";
    let shell = process(&spec(case.world, &case.namespace, SHARED, &[]), &["sh", "-c", script]);
    task.exec("alone", &shell, None)?;
    task.start("alone")?;
    check_eq!(task.wait("alone")?, 7, "status");
    task.delete("alone")?;
    Ok(())
}

/// What a pipe does: its input is there, and over, before the task is.
fn input_that_ends_before_the_process_runs_ends_for_the_process_too(case: &Case<'_>) -> Result<()> {
    let piped = |ctr: &Command| -> Result<String> {
        let mut shell = Command::new("sh");
        shell.args(["-c", "printf 'a\\nb\\n' | \"$@\"", "sh"]).arg(ctr.get_program()).args(ctr.get_args());
        Ok(run(&mut shell, PATIENCE)?.exits(0)?.out().trim().to_owned())
    };
    let shared = case.world.shared()?;
    for round in 0..5 {
        let exec = format!("piped-{round}");
        let exec = shared.ctr_command(["task", "exec", "--exec-id", &exec, SHARED, "wc", "-l"]);
        check_eq!(piped(&exec)?, "2", "lines that exec number {round} has read");
    }
    Ok(())
}

/// More than all that is in between holds. `ctr` hands on to the process what it is sent itself, SIGPIPE too.
fn a_process_that_closes_its_input_outlives_what_comes_then(case: &Case<'_>) -> Result<()> {
    let shared = case.world.shared()?;
    let script = "exec 0<&-; sleep 1; echo lives";
    let args = ["task", "exec", "--exec-id", "closes", SHARED, "sh", "-c", script];
    let output = start(&mut shared.ctr_command(args), vec![0; 20 << 20])?.wait(PATIENCE)?.exits(0)?;
    check_eq!(output.out(), "lives\n", "output");
    Ok(())
}
