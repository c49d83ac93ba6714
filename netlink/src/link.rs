//! Network interfaces.

use std::{fmt, io, str::FromStr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoMacVtap, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVtapMode},
};
use serde::{Deserialize, Serialize};

use crate::Netlink;

/// The address of an Ethernet interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

/// Text that is no address of an Ethernet interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoMac;

impl fmt::Display for NoMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wants six bytes in hexadecimal, as 02:00:5e:10:00:01")
    }
}

impl std::error::Error for NoMac {}

impl FromStr for Mac {
    type Err = NoMac;

    fn from_str(text: &str) -> Result<Mac, NoMac> {
        let byte = |part: &str| match part.len() {
            2 if part.bytes().all(|byte| byte.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).ok(),
            _ => None,
        };
        let bytes = text.split(':').map(byte).collect::<Option<Vec<u8>>>().ok_or(NoMac)?;
        bytes.try_into().map(Mac).map_err(|_| NoMac)
    }
}

/// What an interface is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// One end of a pair.
    Veth,
    /// An interface that a program is behind: a tap, or a tun.
    Tun,
    /// One of several on another interface, told apart by their addresses.
    Macvlan,
    /// The same with a program behind it.
    Macvtap,
    /// One of several on another interface, which share its address.
    Ipvlan,
    /// A device, or something that has not said what it is.
    Device,
    /// Something else, by the kernel's name.
    Other(String),
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its address, where it is an Ethernet interface.
    pub mac: Option<Mac>,
    /// The longest packet, in bytes.
    pub mtu: u32,
    /// How many packets may wait to be sent. The kernel makes 1000 of none when it gets a queueing discipline.
    pub queue_length: u32,
    /// The namespace itself.
    pub is_loopback: bool,
    /// It is in use.
    pub is_up: bool,
    /// Nobody is asked for addresses on it.
    pub no_arp: bool,
    /// The address of the PCI device that it is, if it is one. Kernels before 5.14 do not tell.
    pub pci_device: Option<String>,
}

/// What is to be changed of an interface; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Its name, which only an interface that is not in use can change.
    pub name: Option<String>,
    /// Its address.
    pub mac: Option<Mac>,
    /// The longest packet, in bytes.
    pub mtu: Option<u32>,
    /// How many packets may wait to be sent.
    pub queue_length: Option<u32>,
    /// Whether it is in use.
    pub up: Option<bool>,
    /// Whether nobody is asked for addresses on it.
    pub no_arp: Option<bool>,
}

impl Netlink {
    /// All interfaces.
    ///
    /// # Errors
    /// The kernel's refusal, or an answer that cannot be read.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.list(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let links = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(Link::of(message)),
            _ => None,
        });
        Ok(links.collect())
    }

    /// Changes the interface number `index`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn change_link(&mut self, index: u32, change: &LinkChange) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        for (flag, wanted) in [(LinkFlags::Up, change.up), (LinkFlags::Noarp, change.no_arp)] {
            if let Some(on) = wanted {
                message.header.change_mask |= flag;
                message.header.flags.set(flag, on);
            }
        }
        let name = change.name.clone().map(LinkAttribute::IfName);
        let mac = change.mac.map(|Mac(bytes)| LinkAttribute::Address(bytes.to_vec()));
        let mtu = change.mtu.map(LinkAttribute::Mtu);
        let queue = change.queue_length.map(LinkAttribute::TxQueueLen);
        message.attributes.extend([name, mac, mtu, queue].into_iter().flatten());
        self.order(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Makes a macvtap in bridge mode on the interface number `lower`, not in use yet.
    ///
    /// # Errors
    /// The kernel's refusal: `AlreadyExists` where an interface has the name or the number.
    pub fn add_macvtap(&mut self, index: u32, name: &str, lower: u32, mac: Mac, mtu: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Link(lower),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::MacVtap),
                LinkInfo::Data(InfoData::MacVtap(vec![InfoMacVtap::Mode(MacVtapMode::Bridge)])),
            ]),
        ];
        self.order(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes an interface that sends what is sent to it back to where that came in, and is in use.
    ///
    /// # Errors
    /// The kernel's refusal: `AlreadyExists` where an interface has the name or the number, `Unsupported` where the
    /// kernel has no such interfaces.
    pub fn add_ifb(&mut self, index: u32, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
        ];
        self.order(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes the interface number `index`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove_link(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.order(RouteNetlinkMessage::DelLink(message), 0)
    }
}

impl Link {
    fn of(message: LinkMessage) -> Link {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            kind: Kind::Device,
            mac: None,
            mtu: 0,
            queue_length: 0,
            is_loopback: flags.contains(LinkFlags::Loopback),
            is_up: flags.contains(LinkFlags::Up),
            no_arp: flags.contains(LinkFlags::Noarp),
            pci_device: None,
        };
        let (mut parent, mut bus) = (None, None);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::TxQueueLen(length) => link.queue_length = length,
                LinkAttribute::LinkInfo(infos) => {
                    let kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(Kind::of(&kind)),
                        _ => None,
                    });
                    link.kind = kind.unwrap_or(Kind::Device);
                }
                LinkAttribute::ParentDevName(name) => parent = Some(name),
                LinkAttribute::ParentDevBusName(name) => bus = Some(name),
                _ => {}
            }
        }
        link.pci_device = parent.filter(|_| bus.as_deref() == Some("pci"));
        link
    }
}

impl Kind {
    fn of(kind: &InfoKind) -> Kind {
        match kind {
            InfoKind::Veth => Kind::Veth,
            InfoKind::Tun => Kind::Tun,
            InfoKind::MacVlan => Kind::Macvlan,
            InfoKind::MacVtap => Kind::Macvtap,
            InfoKind::IpVlan => Kind::Ipvlan,
            other => Kind::Other(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d18_a_link_that_is_a_pci_device_tells_its_address() {
        let of = |bus: &str| {
            let mut message = LinkMessage::default();
            let (name, bus) = ("0000:3b:00.0".to_owned(), bus.to_owned());
            message.attributes =
                vec![LinkAttribute::ParentDevName(name), LinkAttribute::ParentDevBusName(bus)];
            Link::of(message).pci_device
        };
        assert_eq!((of("pci").as_deref(), of("virtio")), (Some("0000:3b:00.0"), None));
    }
}
