//! What there is in the pod's namespace.

use std::{io, net::IpAddr};

use netlink::{Address, Link, Neighbour, Netlink, Route};

/// A network interface with addresses, and what goes by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) link: Link,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
}

/// The interfaces of this namespace but its loopback, in the kernel's order.
pub(super) fn all(netlink: &mut Netlink) -> io::Result<Vec<Found>> {
    let links = netlink.links()?;
    let (addresses, routes) = (netlink.addresses()?, netlink.routes()?);
    let neighbours = netlink.permanent_neighbours()?;
    Ok(sorted(links, &addresses, &routes, &neighbours))
}

/// Those that have an address.
pub(super) fn found(netlink: &mut Netlink) -> io::Result<Vec<Found>> {
    let mut all = all(netlink)?;
    all.retain(|found| !found.addresses.is_empty());
    Ok(all)
}

impl Found {
    /// Whether it has an address that the kernel did not give it as soon as it was in use.
    pub(super) fn is_set_up(&self) -> bool {
        self.given().next().is_some()
    }

    /// The addresses that somebody gave it.
    fn given(&self) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(|address| !is_kernels(address))
    }

    /// Whether the guest's interface would have to be changed for it to be like this one, and not like `other`.
    pub(super) fn differs(&self, other: &Found) -> bool {
        let shown = |link: &Link| (link.name.clone(), link.mtu, link.no_arp);
        shown(&self.link) != shown(&other.link) || !self.given().eq(other.given())
    }
}

fn is_kernels(address: &Address) -> bool {
    matches!(address.ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Whose is what. The guest's kernel makes the routes for its addresses itself, and hears routers itself: what they have
/// advertised to the host's would stay for ever in the guest.
pub(super) fn sorted(
    mut links: Vec<Link>,
    addresses: &[Address],
    routes: &[Route],
    neighbours: &[Neighbour],
) -> Vec<Found> {
    links.sort_by_key(|link| link.index);
    let found = links.into_iter().filter(|link| !link.is_loopback).map(|link| {
        let index = link.index;
        Found {
            addresses: addresses
                .iter()
                .filter(|address| address.link == index && !address.is_advertised)
                .copied()
                .collect(),
            routes: routes.iter().filter(|route| route.link == index && !route.is_kernels).cloned().collect(),
            neighbours: neighbours.iter().filter(|neighbour| neighbour.link == index).copied().collect(),
            link,
        }
    });
    found.collect()
}
