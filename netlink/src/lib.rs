//! The kernel's networking, for host and guest alike: network interfaces, their addresses, routes and neighbours, and
//! the traffic control that joins two of them.
//!
//! A [`Netlink`] is of the network namespace that the thread was in which opened it, wherever it goes afterwards. The
//! kernel answers at once, so nothing here is asynchronous: it can be used where something is dropped, and on a thread
//! that has entered another namespace.

mod address;
mod link;
mod neighbour;
mod rate;
mod route;
mod saved;
mod socket;
#[cfg(test)]
mod tests;
mod traffic;
mod watch;

pub use address::Address;
pub use link::{Kind, Link, LinkChange, Mac};
pub use neighbour::Neighbour;
pub use route::Route;
pub use saved::Saved;
pub use socket::Netlink;
pub use watch::Watch;
