//! Who else is on a link.

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use crate::{Mac, Netlink, address::family};

/// A neighbour whose address is given rather than asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface's number.
    pub link: u32,
    /// Who it is.
    pub ip: IpAddr,
    /// Where it is.
    pub mac: Mac,
    /// The kernel's flags, `NTF_*` of linux/neighbour.h.
    pub flags: u8,
}

impl Netlink {
    /// The neighbours that are known for good.
    ///
    /// # Errors
    /// The kernel's refusal, or an answer that cannot be read.
    pub fn permanent_neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        let answers = self.list(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
        let neighbours = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => Neighbour::of(message),
            _ => None,
        });
        Ok(neighbours.collect())
    }

    /// Makes a neighbour known for good.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_neighbour(&mut self, neighbour: &Neighbour) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(neighbour.ip);
        message.header.ifindex = neighbour.link;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::from_bits_retain(neighbour.flags);
        let ip = match neighbour.ip {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(ip),
            NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
        ];
        self.order(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }
}

impl Neighbour {
    fn of(message: &NeighbourMessage) -> Option<Neighbour> {
        if message.header.state != NeighbourState::Permanent {
            return None;
        }
        let ip = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::from(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::from(*ip)),
            _ => None,
        })?;
        let mac = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
            _ => None,
        })?;
        Some(Neighbour { link: message.header.ifindex, ip, mac, flags: message.header.flags.bits() })
    }
}
