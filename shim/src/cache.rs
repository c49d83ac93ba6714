//! Shims that wait with a machine each, for sandboxes that should not have to wait.
//!
//! ```text
//! factory init  -> keeper: as many waiting shims as vm_cache_number says, a new one for each that is taken
//! waiting shim  -> boots a machine or copies a template, has a container live in it, pauses it, says that it is ready
//! start action --what it needs--> keeper ==connection==> waiting shim --pid--> start action --order, socket--> waiting shim
//! waiting shim  -> is the shim of the order's sandbox from then on: the keeper may end, it stays
//! ```
//!
//! A machine and its helpers are always the children of the shim that has them, waiting or not: whoever is killed,
//! nothing is left.

mod asked;
mod keeper;
mod order;
mod propagation;
mod title;
mod waiting;

pub(crate) use asked::{status, take};
pub(crate) use keeper::{keep, sweep_waiting};
pub(crate) use waiting::wait;

/// The action of `factory` that waiting shims are started with.
pub(crate) const WAIT: &str = "wait";
/// The descriptor of a waiting shim that connects it with its keeper.
const KEEPER_FD: std::os::fd::RawFd = 3;
