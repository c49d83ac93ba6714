//! What the guest is told of its network.

use std::collections::HashSet;

use agent_protocol::types;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use netlink::{Address, Neighbour, Route};

use super::scan::Found;

/// The only flag of an interface that the guest takes.
const NO_ARP: u32 = libc::IFF_NOARP as u32;
/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;
/// `NUD_PERMANENT`.
const PERMANENT: i32 = 0x80;

/// The agent's messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Told {
    pub(super) interfaces: Vec<types::Interface>,
    pub(super) routes: Vec<types::Route>,
    pub(super) neighbours: Vec<types::ARPNeighbor>,
}

impl Told {
    pub(super) fn of<'a>(found: impl IntoIterator<Item = &'a Found>) -> Told {
        let found: Vec<_> = found.into_iter().collect();
        let named = |found: &Found| found.link.name.clone();
        Told {
            interfaces: found.iter().copied().map(interface).collect(),
            routes: routes(&found),
            neighbours: found
                .iter()
                .flat_map(|found| found.neighbours.iter().map(|one| neighbour(one, named(found))))
                .collect(),
        }
    }
}

/// The protocol has no place for a route's priority, so of those to one destination the one that is used is told.
fn routes(found: &[&Found]) -> Vec<types::Route> {
    let mut all: Vec<_> = found
        .iter()
        .flat_map(|found| found.routes.iter().map(move |route| (route, &found.link.name)))
        .collect();
    all.sort_by_key(|(route, _)| route.priority.unwrap_or_default());
    let mut destinations = HashSet::new();
    all.retain(|(route, _)| destinations.insert((route.is_v6, route.destination)));
    all.into_iter().map(|(route, device)| self::route(route, device.clone())).collect()
}

pub(super) fn interface(found: &Found) -> types::Interface {
    let link = &found.link;
    types::Interface {
        device: link.name.clone(),
        name: link.name.clone(),
        ip_addresses: found.addresses.iter().map(address).collect(),
        mtu: link.mtu.into(),
        hw_addr: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        raw_flags: if link.no_arp { NO_ARP } else { 0 },
        ..Default::default()
    }
}

fn address(address: &Address) -> types::IPAddress {
    types::IPAddress {
        family: family(address.ip.is_ipv6()),
        address: address.ip.to_string(),
        mask: address.prefix.to_string(),
        ..Default::default()
    }
}

fn route(route: &Route, device: String) -> types::Route {
    types::Route {
        dest: route.destination.map(|(ip, prefix)| format!("{ip}/{prefix}")).unwrap_or_default(),
        gateway: route.gateway.map(|ip| ip.to_string()).unwrap_or_default(),
        source: route.source.map(|ip| ip.to_string()).unwrap_or_default(),
        device,
        scope: route.scope.into(),
        family: family(route.is_v6),
        flags: if route.onlink { ONLINK } else { 0 },
        mtu: route.mtu.unwrap_or_default(),
        ..Default::default()
    }
}

fn neighbour(neighbour: &Neighbour, device: String) -> types::ARPNeighbor {
    let ip = types::IPAddress {
        family: family(neighbour.ip.is_ipv6()),
        address: neighbour.ip.to_string(),
        ..Default::default()
    };
    types::ARPNeighbor {
        to_ip_address: MessageField::some(ip),
        device,
        lladdr: neighbour.mac.to_string(),
        state: PERMANENT,
        flags: neighbour.flags.into(),
        ..Default::default()
    }
}

fn family(is_v6: bool) -> EnumOrUnknown<types::IPFamily> {
    if is_v6 { types::IPFamily::v6 } else { types::IPFamily::v4 }.into()
}
