//! Addresses, routes and neighbours as the kernel told them, to be given back to it as they are: what `ip addr save`
//! and `ip route save` do.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    neighbour::{NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType},
};
use serde::{Deserialize, Serialize};

use crate::Netlink;

/// Addresses of an interface, the routes by it and its permanent neighbours, in the order that they can be made in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved(Vec<Vec<u8>>);

impl Netlink {
    /// The addresses of the interface number `link`, the routes by it that the kernel does not make for those, and the
    /// neighbours that are known for good.
    ///
    /// # Errors
    /// The kernel's refusal, or an answer that cannot be read.
    pub fn save(&mut self, link: u32) -> io::Result<Saved> {
        let mut kept = self.list(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        kept.retain(
            |one| matches!(one, RouteNetlinkMessage::NewAddress(address) if address.header.index == link),
        );
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            routes.extend(self.list(&RouteNetlinkMessage::GetRoute(question))?);
        }
        routes.retain(|one| matches!(one, RouteNetlinkMessage::NewRoute(route) if is_made_for(route, link)));
        for one in &mut routes {
            if let RouteNetlinkMessage::NewRoute(route) = one {
                // The others tell the state of the link, and the kernel takes no route with them.
                route.header.flags &= RouteFlags::Onlink;
            }
        }
        routes.sort_by_key(|one| matches!(one, RouteNetlinkMessage::NewRoute(route) if has_gateway(route)));
        kept.extend(routes);
        let neighbours = self.list(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
        kept.extend(neighbours.into_iter().filter(|one| {
            matches!(one, RouteNetlinkMessage::NewNeighbour(neighbour)
                if neighbour.header.ifindex == link && neighbour.header.state == NeighbourState::Permanent)
        }));
        Ok(Saved(kept.into_iter().map(bytes).collect()))
    }

    /// Makes what was saved again; what is there is as good.
    ///
    /// # Errors
    /// The kernel's first refusal; everything else was tried.
    pub fn restore(&mut self, saved: &Saved) -> io::Result<()> {
        let mut outcome = Ok(());
        for bytes in &saved.0 {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()));
            let made = message.and_then(|message| match message.payload {
                NetlinkPayload::InnerMessage(order) => self.order(order, NLM_F_CREATE | NLM_F_REPLACE),
                _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
            });
            outcome = outcome.and(made);
        }
        outcome
    }

    /// Takes all its addresses from the interface number `link`, and with them routes.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn clear_addresses(&mut self, link: u32) -> io::Result<()> {
        for address in self.addresses()?.into_iter().filter(|address| address.link == link) {
            self.remove_address(address)?;
        }
        Ok(())
    }
}

/// Not for single hosts, and not by the kernel for an address.
fn is_made_for(route: &RouteMessage, link: u32) -> bool {
    route.header.kind == RouteType::Unicast
        && route.header.protocol != RouteProtocol::Kernel
        && route.attributes.contains(&RouteAttribute::Oif(link))
}

fn has_gateway(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_)))
}

fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
