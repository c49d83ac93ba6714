//! Docker: a real daemon, containerd, shim, QEMU and guest, and iptables, in a network and mounts of their own.
//!
//! `make matrix` runs it, as it fetches Docker; `KATA_TEST_DOCKER=<dir> cargo test -p tests --test docker` runs it with
//! Docker's Debian packages unpacked there. All cases share one daemon. Every case removes its container, and ends with
//! a search for anything left that carries its name.

mod containers;
mod network;

use std::process::ExitCode;

use tests::Result;
use tests::docker::{Docker, programs};
use tests::suite::{self, Listed as Case};

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

fn main() -> ExitCode {
    let case = |is_alone: bool| move |(name, body): Listed| Case { name: name.to_owned(), body, is_alone };
    let shared = containers::listed().into_iter().chain(network::listed()).map(case(false));
    let alone = containers::alone().into_iter().map(case(true));
    // Who runs all tests there are has not asked for Docker.
    suite::run(Docker::new, shared.chain(alone), programs().is_ok())
}
