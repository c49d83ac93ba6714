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
mod restarts;
mod sandboxes;
mod stats;
mod streams;
mod volumes;

use std::process::ExitCode;

use tests::Result;
use tests::assets::by_sandbox_api;
use tests::pods::PodWorld;
use tests::suite::{self, Listed as Case};

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

fn main() -> ExitCode {
    let mut files = vec![
        ("containers", containers::listed()),
        ("management", management::listed()),
        ("network", network::listed()),
        ("resources", resources::listed()),
        ("restarts", restarts::listed()),
        ("stats", stats::listed()),
        ("streams", streams::listed()),
        ("volumes", volumes::listed()),
    ];
    if by_sandbox_api() {
        files.push(("sandboxes", sandboxes::listed()));
    }
    let case =
        |file: &str, (name, body): Listed, is_alone| Case { name: format!("{file}::{name}"), body, is_alone };
    let all = files
        .into_iter()
        .flat_map(|(file, cases)| cases.into_iter().map(move |listed| case(file, listed, false)));
    let crowds = containers::crowds().into_iter().map(|listed| case("containers", listed, true));
    suite::run(PodWorld::new, all.chain(crowds), true)
}
