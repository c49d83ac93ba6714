//! Docker: a real daemon, containerd, shim, QEMU and guest, and iptables, in a network and mounts of their own.
//!
//! `make matrix` runs it, as it fetches Docker; `KATA_TEST_DOCKER=<dir> cargo test -p tests --test docker` runs it with
//! Docker's Debian packages unpacked there. All cases share one daemon. Every case removes its container, and ends with
//! a search for anything left that carries its name.

mod containers;
mod network;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use libtest_mimic::{Arguments, Failed, Trial, run};
use tests::docker::{Docker, programs};
use tests::{Failure, Result};

/// A case: its name is a sentence about Docker's containers.
type Listed = (&'static str, fn(&Docker) -> Result<()>);

macro_rules! listed {
    ($($name:ident),* $(,)?) => {
        /// The cases of this file.
        pub(crate) fn listed() -> Vec<crate::Listed> {
            vec![$((stringify!($name), $name)),*]
        }
    };
}
pub(crate) use listed;

/// The daemon, for one case alone or for several.
static PLACE: RwLock<()> = RwLock::new(());

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A guest without KVM keeps a core busy while it boots; more at once only make each other late.
    arguments.test_threads.get_or_insert(2);
    let world = Arc::new(OnceLock::new());
    // Who runs all tests there are has not asked for Docker.
    let is_there = programs().is_ok();
    let trial = |(name, body): Listed, alone: bool| {
        let world = world.clone();
        let body = move || {
            let _alone = alone.then(|| PLACE.write().unwrap_or_else(PoisonError::into_inner));
            let _among_others = (!alone).then(|| PLACE.read().unwrap_or_else(PoisonError::into_inner));
            in_world(&world, body).map_err(|failure| Failed::from(failure.to_string()))
        };
        Trial::test(name, body).with_ignored_flag(!is_there)
    };
    let shared = containers::listed().into_iter().chain(network::listed()).map(|case| trial(case, false));
    let alone = containers::alone().into_iter().map(|case| trial(case, true));
    run(&arguments, shared.chain(alone).collect()).exit_code()
}

fn in_world(world: &OnceLock<Result<Docker>>, body: fn(&Docker) -> Result<()>) -> Result<()> {
    // Made by the first case, so that `--list` starts nothing.
    match world.get_or_init(Docker::new) {
        Ok(world) => body(world),
        Err(failure) => Err(Failure::new(failure.to_string())),
    }
}
