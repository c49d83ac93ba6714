//! Addresses of interfaces.

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope},
};

use crate::Netlink;

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The interface's number.
    pub link: u32,
    /// The address.
    pub ip: IpAddr,
    /// Bits of it that its network has in common.
    pub prefix: u8,
    /// The kernel has made it of what a router advertised, for as long as that says so. Kernels before Linux 5.18 do not
    /// tell.
    pub is_advertised: bool,
}

impl Address {
    /// One that somebody gives an interface.
    #[must_use]
    pub fn new(link: u32, ip: IpAddr, prefix: u8) -> Address {
        Address { link, ip, prefix, is_advertised: false }
    }
}

impl Netlink {
    /// The addresses of all interfaces.
    ///
    /// # Errors
    /// The kernel's refusal, or an answer that cannot be read.
    pub fn addresses(&mut self) -> io::Result<Vec<Address>> {
        let answers = self.list(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let addresses = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Address::of(&message),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// Gives an interface an address, unless it has it already. It is good from the first moment: nobody is asked
    /// whether they have it too.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_address(&mut self, address: Address) -> io::Result<()> {
        let mut message = address.message();
        if let IpAddr::V4(ip) = address.ip
            && address.prefix < 31
        {
            let broadcast = ip | std::net::Ipv4Addr::from(u32::MAX >> address.prefix);
            message.attributes.push(AddressAttribute::Broadcast(broadcast));
        }
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        self.order(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove_address(&mut self, address: Address) -> io::Result<()> {
        self.order(RouteNetlinkMessage::DelAddress(address.message()), 0)
    }
}

impl Address {
    fn of(message: &AddressMessage) -> Option<Address> {
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        // Where there is no other end, IPv6 tells the address by this alone.
        let plain = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        let (link, prefix) = (message.header.index, message.header.prefix_len);
        let advertised = AddressAttribute::Protocol(AddressProtocol::RouterAnnouncement);
        let is_advertised = message.attributes.contains(&advertised);
        Some(Address { link, ip: local.or(plain)?, prefix, is_advertised })
    }

    fn message(self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = family(self.ip);
        message.header.prefix_len = self.prefix;
        message.header.index = self.link;
        if is_link_local(self.ip) {
            message.header.scope = AddressScope::Link;
        }
        message.attributes = vec![AddressAttribute::Local(self.ip), AddressAttribute::Address(self.ip)];
        message
    }
}

/// Whether an address means something on its own link alone.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
