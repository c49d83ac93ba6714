//! What there is in the pod's namespace.

use std::io;

use netlink::{Address, Link, Neighbour, Netlink, Route};

/// A network interface with addresses, and what goes by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) link: Link,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
}

/// The interfaces of this namespace that have an address, in the kernel's order.
pub(super) fn found(netlink: &mut Netlink) -> io::Result<Vec<Found>> {
    let links = netlink.links()?;
    let (addresses, routes) = (netlink.addresses()?, netlink.routes()?);
    let neighbours = netlink.permanent_neighbours()?;
    Ok(sorted(links, &addresses, &routes, &neighbours))
}

/// Whose is what. The guest's kernel makes the routes for its addresses itself.
pub(super) fn sorted(
    mut links: Vec<Link>,
    addresses: &[Address],
    routes: &[Route],
    neighbours: &[Neighbour],
) -> Vec<Found> {
    links.sort_by_key(|link| link.index);
    let has_address =
        |link: &Link| !link.is_loopback && addresses.iter().any(|address| address.link == link.index);
    let found = links.into_iter().filter(has_address).map(|link| {
        let index = link.index;
        Found {
            addresses: addresses.iter().filter(|address| address.link == index).copied().collect(),
            routes: routes.iter().filter(|route| route.link == index && !route.is_kernels).cloned().collect(),
            neighbours: neighbours.iter().filter(|neighbour| neighbour.link == index).copied().collect(),
            link,
        }
    });
    found.collect()
}
