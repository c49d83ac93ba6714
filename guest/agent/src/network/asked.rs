//! What the host asks for, checked.

use std::{fmt::Display, net::IpAddr, str::FromStr};

use agent_protocol::types;
use netlink::{Mac, Neighbour, Route};
use protobuf::EnumOrUnknown;

use super::place::Place;
use crate::error::Error;

/// The only flag of an interface that is the host's to say.
const NO_ARP: u32 = libc::IFF_NOARP as u32;
/// The only flag of a route that is more than the host's state of it (`RTNH_F_ONLINK`).
const ONLINK: u32 = 4;
/// `NUD_PERMANENT`.
const PERMANENT: i32 = 0x80;
/// The longest name of an interface.
const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;
/// The kernel's own limits for an Ethernet interface's packets.
const MTUS: std::ops::RangeInclusive<u64> = 68..=65535;

/// An interface.
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) mac: Mac,
    pub(super) place: Option<Place>,
    pub(super) mtu: Option<u32>,
    /// With the bits that its network has in common.
    pub(super) addresses: Vec<(IpAddr, u8)>,
    pub(super) no_arp: bool,
}

/// A route, and the name of the interface whose number it is to have.
pub(super) struct AskedRoute {
    pub(super) device: String,
    pub(super) route: Route,
}

/// A neighbour, likewise.
pub(super) struct AskedNeighbour {
    pub(super) device: String,
    pub(super) neighbour: Neighbour,
}

impl Asked {
    pub(super) fn parse(interface: &types::Interface) -> Result<Self, Error> {
        let name = if interface.name.is_empty() { &interface.device } else { &interface.name };
        let place = Some(interface.device_path.as_str()).filter(|path| !path.is_empty());
        let mtu = Some(interface.mtu).filter(|mtu| *mtu != 0);
        if interface.raw_flags & !NO_ARP != 0 {
            let why = format!("only NOARP ({NO_ARP:#x}) can be asked for");
            return Err(invalid("interface.raw_flags", &format!("{:#x}", interface.raw_flags), why));
        }
        Ok(Self {
            name: self::name("interface.name", name)?,
            mac: parse("interface.hwAddr", &interface.hw_addr)?,
            place: place.map(|path| parse("interface.devicePath", path)).transpose()?,
            mtu: mtu.map(|mtu| self::mtu("interface.mtu", mtu)).transpose()?,
            addresses: interface.ip_addresses.iter().map(address).collect::<Result<_, _>>()?,
            no_arp: interface.raw_flags & NO_ARP != 0,
        })
    }
}

impl AskedRoute {
    pub(super) fn parse(route: &types::Route) -> Result<Self, Error> {
        let is_v6 = is_v6("route.family", route.family)?;
        let some = |field, text: &str| match text {
            "" => Ok(None),
            text => parse::<IpAddr>(field, text).map(Some),
        };
        let parsed = Route {
            destination: destination(&route.dest)?,
            gateway: some("route.gateway", &route.gateway)?,
            source: some("route.source", &route.source)?,
            link: 0,
            is_v6,
            scope: u8::try_from(route.scope)
                .map_err(|_| invalid("route.scope", &route.scope.to_string(), "wants 0 to 255"))?,
            onlink: route.flags & ONLINK != 0,
            mtu: Some(route.mtu).filter(|mtu| *mtu != 0),
            is_kernels: false,
            priority: None,
        };
        if !parsed.is_consistent() {
            let family = if is_v6 { "v6" } else { "v4" };
            return Err(invalid("route.family", family, "its addresses are of another"));
        }
        Ok(Self { device: name("route.device", &route.device)?, route: parsed })
    }
}

impl AskedNeighbour {
    pub(super) fn parse(neighbour: &types::ARPNeighbor) -> Result<Self, Error> {
        let to = neighbour.to_ip_address.as_ref();
        let to = to.ok_or_else(|| Error::invalid("neighbor.toIPAddress: missing"))?;
        if neighbour.state != PERMANENT && neighbour.state != 0 {
            let why = format!("only permanent ones ({PERMANENT:#x}) can be added");
            return Err(invalid("neighbor.state", &format!("{:#x}", neighbour.state), why));
        }
        let flags = u8::try_from(neighbour.flags)
            .map_err(|_| invalid("neighbor.flags", &neighbour.flags.to_string(), "wants 0 to 255"))?;
        let ip = parse("neighbor.toIPAddress.address", &to.address)?;
        let mac = parse("neighbor.lladdr", &neighbour.lladdr)?;
        let device = name("neighbor.device", &neighbour.device)?;
        Ok(Self { device, neighbour: Neighbour { link: 0, ip, mac, flags } })
    }
}

fn address(asked: &types::IPAddress) -> Result<(IpAddr, u8), Error> {
    let ip: IpAddr = parse("interface.IPAddresses.address", &asked.address)?;
    if ip.is_ipv6() != is_v6("interface.IPAddresses.family", asked.family)? {
        return Err(invalid("interface.IPAddresses.family", &asked.address, "is of the other family"));
    }
    Ok((ip, prefix("interface.IPAddresses.mask", &asked.mask, ip)?))
}

/// Nothing is anywhere; an address without a prefix is itself alone.
fn destination(text: &str) -> Result<Option<(IpAddr, u8)>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let (address, mask) = text.split_once('/').unwrap_or((text, ""));
    let ip: IpAddr = parse("route.dest", address)?;
    let all = if ip.is_ipv6() { 128 } else { 32 };
    let prefix = if text.contains('/') { prefix("route.dest", mask, ip)? } else { all };
    Ok(Some((ip, prefix)).filter(|(ip, prefix)| !(ip.is_unspecified() && *prefix == 0)))
}

fn prefix(field: &str, text: &str, ip: IpAddr) -> Result<u8, Error> {
    let most = if ip.is_ipv6() { 128 } else { 32 };
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let prefix = text.parse().ok().filter(|prefix| is_number && *prefix <= most);
    prefix.ok_or_else(|| invalid(field, text, format!("wants a prefix's length, 0 to {most}")))
}

fn is_v6(field: &str, family: EnumOrUnknown<types::IPFamily>) -> Result<bool, Error> {
    match family.enum_value() {
        Ok(family) => Ok(family == types::IPFamily::v6),
        Err(number) => Err(invalid(field, &number.to_string(), "wants 0 for v4 or 1 for v6")),
    }
}

fn mtu(field: &str, mtu: u64) -> Result<u32, Error> {
    let small = u32::try_from(mtu).ok().filter(|_| MTUS.contains(&mtu));
    small.ok_or_else(|| {
        invalid(field, &mtu.to_string(), format!("wants {} to {} bytes", MTUS.start(), MTUS.end()))
    })
}

/// What the kernel takes for a name, and nothing that would be read as a place or a list of names.
fn name(field: &str, name: &str) -> Result<String, Error> {
    let is_good = !name.is_empty()
        && name.len() <= LONGEST_NAME
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
    if is_good {
        return Ok(name.to_owned());
    }
    Err(invalid(field, name, format!("no name of a network interface, of 1 to {LONGEST_NAME} bytes")))
}

fn parse<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|error: T::Err| invalid(field, text, error))
}

fn invalid(field: &str, value: &str, why: impl Display) -> Error {
    Error::invalid(format!("{field} {value:?}: {why}"))
}
