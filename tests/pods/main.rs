//! Pods by CRI: real containerd with its CRI plugin, real network plugins, real shim, real QEMU, real guest.
//!
//! `cargo test -p tests --test pods` runs all of it, `cargo test -p tests --test pods -- <part of a name>` what matches.
//! All cases share one containerd, in a network and mounts of its own. Every case removes its pods, and ends with a
//! search for anything left that carries their names.
//!
//! `KATA_TEST_SANDBOX_API=1` has the same pods made by containerd's Sandbox API (containerd 1.7 or 2), and adds what
//! only that has.

mod containers;
mod management;
mod network;
mod resources;
mod sandboxes;
mod stats;
mod streams;
mod volumes;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use libtest_mimic::{Arguments, Failed, Trial, run};
use tests::assets::by_sandbox_api;
use tests::pods::PodWorld;
use tests::{Failure, Result};

/// A case: its name is a sentence about pods.
type Listed = (&'static str, fn(&PodWorld) -> Result<()>);

macro_rules! listed {
    ($($name:ident),* $(,)?) => {
        /// The cases of this file.
        pub(crate) fn listed() -> Vec<crate::Listed> {
            vec![$((stringify!($name), $name)),*]
        }
    };
}
pub(crate) use listed;

/// The machine, for one case alone or for several.
static PLACE: RwLock<()> = RwLock::new(());

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A guest without KVM keeps a core busy while it boots; more at once only make each other late.
    arguments.test_threads.get_or_insert(2);
    let world = Arc::new(OnceLock::new());
    let mut files = vec![
        ("containers", containers::listed()),
        ("management", management::listed()),
        ("network", network::listed()),
        ("resources", resources::listed()),
        ("stats", stats::listed()),
        ("streams", streams::listed()),
        ("volumes", volumes::listed()),
    ];
    if by_sandbox_api() {
        files.push(("sandboxes", sandboxes::listed()));
    }
    let trial = |file: &str, (name, body): Listed, crowds: bool| {
        let world = world.clone();
        let body = move || {
            let _alone = crowds.then(|| PLACE.write().unwrap_or_else(PoisonError::into_inner));
            let _among_others = (!crowds).then(|| PLACE.read().unwrap_or_else(PoisonError::into_inner));
            in_world(&world, body).map_err(|failure| Failed::from(failure.to_string()))
        };
        Trial::test(format!("{file}::{name}"), body)
    };
    let all =
        files.into_iter().flat_map(|(file, cases)| cases.into_iter().map(move |case| (file, case, false)));
    let crowds = containers::crowds().into_iter().map(|case| ("containers", case, true));
    run(&arguments, all.chain(crowds).map(|(file, case, crowds)| trial(file, case, crowds)).collect())
        .exit_code()
}

fn in_world(world: &OnceLock<Result<PodWorld>>, body: fn(&PodWorld) -> Result<()>) -> Result<()> {
    // Made by the first case, so that `--list` starts nothing.
    match world.get_or_init(PodWorld::new) {
        Ok(world) => body(world),
        Err(failure) => Err(Failure::new(failure.to_string())),
    }
}
