//! What there is, in the protocol's terms.

use std::net::IpAddr;

use agent_protocol::types;
use netlink::{Address, Link, Route};
use protobuf::EnumOrUnknown;

pub(super) fn interface(link: &Link, addresses: &[Address]) -> types::Interface {
    let own = addresses.iter().filter(|address| address.link == link.index);
    types::Interface {
        device: link.name.clone(),
        name: link.name.clone(),
        ip_addresses: own.map(address).collect(),
        mtu: link.mtu.into(),
        hw_addr: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        raw_flags: if link.no_arp { libc::IFF_NOARP as u32 } else { 0 },
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

pub(super) fn route(route: &Route, links: &[Link]) -> types::Route {
    let device = links.iter().find(|link| link.index == route.link).map(|link| link.name.clone());
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    types::Route {
        dest: route.destination.map(|(ip, prefix)| format!("{ip}/{prefix}")).unwrap_or_default(),
        gateway: text(route.gateway),
        device: device.unwrap_or_default(),
        source: text(route.source),
        scope: route.scope.into(),
        family: family(route.is_v6),
        mtu: route.mtu.unwrap_or_default(),
        ..Default::default()
    }
}

/// A route in words.
pub(super) fn of(route: &Route) -> String {
    let to = route.destination.map_or("anywhere".to_owned(), |(ip, prefix)| format!("{ip}/{prefix}"));
    match route.gateway {
        Some(gateway) => format!("to {to} by {gateway}"),
        None => format!("to {to}"),
    }
}

fn family(is_v6: bool) -> EnumOrUnknown<types::IPFamily> {
    if is_v6 { types::IPFamily::v6 } else { types::IPFamily::v4 }.into()
}
