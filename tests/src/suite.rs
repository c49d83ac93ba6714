//! Cases that share one world.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{Failure, Result};

/// A case.
pub struct Listed<W> {
    /// A sentence that is true when it passes, behind the name of its file where there are several.
    pub name: String,
    /// What is done.
    pub body: fn(&W) -> Result<()>,
    /// It is done while no other is.
    pub is_alone: bool,
}

/// Runs those that the command line asks for, in a world that the first of them makes. All are ignored unless they `can_be`.
pub fn run<W: Send + Sync + 'static>(
    make: fn() -> Result<W>,
    cases: impl IntoIterator<Item = Listed<W>>,
    can_be: bool,
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A guest without KVM keeps a core busy while it boots; more at once only make each other late.
    arguments.test_threads.get_or_insert(2);
    let shared = Arc::new((OnceLock::new(), RwLock::new(())));
    let trial = |Listed { name, body, is_alone }: Listed<W>| {
        let shared = shared.clone();
        let body = move || {
            let (world, place) = &*shared;
            let _alone = is_alone.then(|| place.write().unwrap_or_else(PoisonError::into_inner));
            let _among_others = (!is_alone).then(|| place.read().unwrap_or_else(PoisonError::into_inner));
            in_world(world.get_or_init(make), body).map_err(|failure| Failed::from(failure.to_string()))
        };
        Trial::test(name, body).with_ignored_flag(!can_be)
    };
    let trials = cases.into_iter().map(trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(shared);
    conclusion.exit_code()
}

fn in_world<W>(world: &Result<W>, body: fn(&W) -> Result<()>) -> Result<()> {
    match world {
        Ok(world) => body(world),
        Err(failure) => Err(Failure::new(failure.to_string())),
    }
}
