//! Routes of the main table.

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
        RouteType,
    },
};

use crate::{Netlink, address::family};

/// A route to one next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads: an address and how many bits of it count. `None` is anywhere.
    pub destination: Option<(IpAddr, u8)>,
    /// Who passes packets on; `None` where the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// What packets come from that have not said so themselves.
    pub source: Option<IpAddr>,
    /// The number of the interface.
    pub link: u32,
    /// IPv6.
    pub is_v6: bool,
    /// How far away the destination is, in the kernel's numbers (`RT_SCOPE_UNIVERSE` is 0).
    pub scope: u8,
    /// The gateway is on the link, whatever the addresses say.
    pub onlink: bool,
    /// The longest packet, in bytes.
    pub mtu: Option<u32>,
    /// Made by the kernel on its own: for an address, or of what a router advertised.
    pub is_kernels: bool,
    /// Its place among those to the same destination: the lowest is used.
    pub priority: Option<u32>,
}

impl Netlink {
    /// The routes of the main table that lead to one next hop each; the kernel's notes of single hosts are none.
    ///
    /// # Errors
    /// The kernel's refusal, or an answer that cannot be read.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let answers = self.list(&RouteNetlinkMessage::GetRoute(question))?;
            routes.extend(answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => Route::of(message),
                _ => None,
            }));
        }
        Ok(routes)
    }

    /// Adds a route; of two to one destination with one priority the later one stays.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_route(&mut self, route: &Route) -> io::Result<()> {
        self.order(RouteNetlinkMessage::NewRoute(route.message()), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove_route(&mut self, route: &Route) -> io::Result<()> {
        let mut message = route.message();
        // Whoever made it.
        message.header.protocol = RouteProtocol::Unspec;
        self.order(RouteNetlinkMessage::DelRoute(message), 0)
    }
}

impl Route {
    fn of(message: &RouteMessage) -> Option<Route> {
        let header = &message.header;
        let is_usual = header.table == RouteHeader::RT_TABLE_MAIN
            && header.kind == RouteType::Unicast
            && !header.flags.contains(RouteFlags::Cloned);
        if !is_usual {
            return None;
        }
        let mut route = Route {
            destination: None,
            gateway: None,
            source: None,
            link: 0,
            is_v6: header.address_family == AddressFamily::Inet6,
            scope: header.scope.into(),
            onlink: header.flags.contains(RouteFlags::Onlink),
            mtu: None,
            is_kernels: matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra),
            priority: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => {
                    route.destination = ip(to).map(|ip| (ip, header.destination_prefix_length));
                }
                RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
                RouteAttribute::PrefSource(source) => route.source = ip(source),
                RouteAttribute::Oif(index) => route.link = *index,
                RouteAttribute::Priority(priority) => route.priority = Some(*priority),
                RouteAttribute::Metrics(metrics) => route.mtu = mtu(metrics),
                _ => {}
            }
        }
        (route.link != 0).then_some(route)
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = if self.is_v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        header.table = RouteHeader::RT_TABLE_MAIN;
        header.protocol = RouteProtocol::Boot;
        header.kind = RouteType::Unicast;
        header.scope = self.scope.into();
        header.flags.set(RouteFlags::Onlink, self.onlink);
        header.destination_prefix_length = self.destination.map_or(0, |(_, prefix)| prefix);
        let attributes = [
            self.destination.map(|(to, _)| RouteAttribute::Destination(address(to))),
            self.gateway.map(|ip| RouteAttribute::Gateway(address(ip))),
            self.source.map(|ip| RouteAttribute::PrefSource(address(ip))),
            Some(RouteAttribute::Oif(self.link)),
            self.priority.map(RouteAttribute::Priority),
            self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])),
        ];
        message.attributes.extend(attributes.into_iter().flatten());
        message
    }

    /// Whether all its addresses are of its own family.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let wanted = if self.is_v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let addresses = self.destination.map(|(ip, _)| ip).into_iter().chain(self.gateway).chain(self.source);
        addresses.into_iter().all(|ip| family(ip) == wanted)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn mtu(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}
