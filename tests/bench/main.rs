//! What a start, an exec, a stream and a pod cost, all from one run: a table, and target/bench/report.json.
//!
//! `make bench`, or `cargo run --release -p tests --bin bench`; `make bench PARTS="running guest"` measures some
//! of it. Set `KATA_BENCH_ROUNDS` for more than three cold starts. What a runtime is compared with is measured in the same
//! run on the same machine: runc, and the bare vsock.

mod files;
mod guest;
mod measure;
mod pods;
mod report;
mod streams;
mod templates;
mod translation;

use std::process::ExitCode;

use report::Report;
use tests::{Result, World, mounts};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if(|arg| arg == guest::PEER).is_some() {
        // Inside the guest this program is the other end of a bare stream.
        return status(guest::peer(args));
    }
    status(bench(&args.collect::<Vec<_>>()))
}

fn status(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report::say(&format!("bench: {failure}"));
            ExitCode::FAILURE
        }
    }
}

fn bench(asked: &[String]) -> Result<()> {
    mounts::like_a_hosts()?;
    let world = World::new()?;
    let mut report = Report::default();
    let measured = measure::all(&world, asked, &mut report);
    let finished = world.finish();
    // What was measured before something failed was measured all the same.
    report.print();
    measured.and(finished)?;
    report.write()
}
