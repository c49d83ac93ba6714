//! The end-to-end suite: real containerd, real shim, real QEMU, real guest.
//!
//! `cargo test -p tests --test e2e` runs all of it, `cargo test -p tests --test e2e -- <part of a name>` what matches,
//! `-- --list` prints the names. With `KATA_TEST_RUNTIME=io.containerd.runc.v2` the same cases run against runc's shim,
//! the reference for every answer; cases about the virtual machine itself are skipped then.
//!
//! All cases share one containerd, and those that only exec share one container. Every case has a containerd
//! namespace of its own and ends with a search for anything left that carries its name.

mod answers;
mod bad_input;
mod cache;
mod concurrency;
mod copied;
mod exec;
mod faults;
mod forward;
mod guest_hooks;
mod hooks;
mod host_devices;
mod inside;
mod lifecycle;
mod limits;
mod logging;
mod machines;
mod network;
mod plug;
mod resources;
mod root_disks;
mod shares;
mod shim_alone;
mod streams;
mod templates;
mod terminal;

use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Failed, Trial, run};
use tests::assets::KATA;
use tests::{Case, Failure, Result, World, mounts};

/// A case: its name is a sentence about the shim.
struct Listed {
    name: &'static str,
    body: fn(&Case<'_>) -> Result<()>,
    /// It says something about the virtual machine, or about what runc leaves to others.
    ours_only: bool,
}

macro_rules! listed {
    (all: [$($all:ident),* $(,)?], ours: [$($ours:ident),* $(,)?]) => {
        /// The cases of this file.
        pub(crate) fn listed() -> Vec<crate::Listed> {
            vec![
                $(crate::Listed { name: stringify!($all), body: $all, ours_only: false },)*
                $(crate::Listed { name: stringify!($ours), body: $ours, ours_only: true },)*
            ]
        }
    };
}
pub(crate) use listed;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if let Err(failure) = mounts::like_a_hosts() {
        let _ = writeln!(std::io::stderr(), "{failure}");
        return ExitCode::FAILURE;
    }
    // A guest without KVM keeps a core busy while it boots; more at once only make each other late.
    arguments.test_threads.get_or_insert(2);
    let world = Arc::new(OnceLock::new());
    let conclusion = run(&arguments, trials(&world));
    let finished = match Arc::into_inner(world).and_then(OnceLock::into_inner) {
        Some(Ok(world)) => World::finish(world),
        _ => Ok(()),
    };
    match finished {
        Ok(()) => conclusion.exit_code(),
        Err(failure) => {
            // Where the harness itself reports, whatever it was told about colours and formats.
            let _ = writeln!(std::io::stderr(), "after the last case: {failure}");
            ExitCode::FAILURE
        }
    }
}

type Shared = Arc<OnceLock<Result<World>>>;

fn trials(world: &Shared) -> Vec<Trial> {
    let files = [
        ("shim_alone", shim_alone::listed()),
        ("answers", answers::listed()),
        ("concurrency", concurrency::listed()),
        ("copied", copied::listed()),
        ("exec", exec::listed()),
        ("streams", streams::listed()),
        ("templates", templates::listed()),
        ("terminal", terminal::listed()),
        ("lifecycle", lifecycle::listed()),
        ("limits", limits::listed()),
        ("inside", inside::listed()),
        ("root_disks", root_disks::listed()),
        ("shares", shares::listed()),
        ("guest_hooks", guest_hooks::listed()),
        ("faults", faults::listed()),
        ("forward", forward::listed()),
        ("hooks", hooks::listed()),
        ("host_devices", host_devices::listed()),
        ("logging", logging::listed()),
        ("machines", machines::listed()),
        ("network", network::listed()),
        ("plug", plug::listed()),
        ("resources", resources::listed()),
        ("bad_input", bad_input::listed()),
        ("cache", cache::listed()),
    ];
    let reference = std::env::var("KATA_TEST_RUNTIME").is_ok_and(|runtime| runtime != KATA);
    let trial = |file: &str, listed: Listed| {
        let world = world.clone();
        let skipped = (listed.ours_only && reference)
            || network::lacks_its_kind(listed.name)
            || root_disks::lacks_its_kernel(listed.name);
        let body = move || in_world(&world, listed.body).map_err(|failure| Failed::from(failure.to_string()));
        Trial::test(format!("{file}::{}", listed.name), body).with_ignored_flag(skipped)
    };
    let all = files.into_iter().flat_map(|(file, cases)| cases.into_iter().map(move |case| (file, case)));
    all.map(|(file, case)| trial(file, case)).collect()
}

fn in_world(world: &Shared, body: fn(&Case<'_>) -> Result<()>) -> Result<()> {
    // Made by the first case, so that `--list` starts nothing.
    match world.get_or_init(World::new) {
        Ok(world) => world.case(body),
        Err(failure) => Err(Failure::new(failure.to_string())),
    }
}
