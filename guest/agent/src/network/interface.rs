//! One network interface: found, and made what it is to be.

use netlink::{Address, Link, LinkChange, Netlink};

use super::{asked::Asked, open};
use crate::{devices::Devices, error::Error, modules};

/// What drives the interfaces of a virtual machine.
const DRIVER: &str = "virtio_net";

/// The interface that is meant, once it is there.
pub(super) async fn find(devices: &Devices, asked: &Asked) -> Result<Link, Error> {
    let what = match &asked.place {
        None => format!("wait for a network interface of address {}", asked.mac),
        Some(place) => format!("wait for a network interface of address {} at {place}", asked.mac),
    };
    // The driver of whatever virtio device is there, or comes; other drivers are the kernel's to have.
    modules::need(DRIVER)?;
    devices.wait_for(&what, || Ok(among(open()?, asked)?.into_iter().next())).await
}

/// Those of the address, and in the place, that is asked for.
fn among(mut netlink: Netlink, asked: &Asked) -> Result<Vec<Link>, Error> {
    let mut links = netlink.links().map_err(Error::system("list network interfaces"))?;
    links.retain(|link| {
        let is_there = || asked.place.as_ref().is_none_or(|place| place.has(&link.name));
        !link.is_loopback && link.mac == Some(asked.mac) && is_there()
    });
    Ok(links)
}

/// Makes `link` what is asked for and puts it to use. What it is already stays untouched, so that asking twice is
/// no interruption.
pub(super) fn change(netlink: &mut Netlink, link: &Link, asked: &Asked) -> Result<(), Error> {
    let index = link.index;
    let refused = |what: &str| Error::system(format!("{what} of the network interface {}", asked.name));
    if link.name != asked.name {
        make_way(netlink, &asked.name)?;
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        netlink.change_link(index, &down).map_err(refused("stop the use"))?;
        let name = LinkChange { name: Some(asked.name.clone()), ..LinkChange::default() };
        netlink.change_link(index, &name).map_err(refused("change the name"))?;
    }
    // Before the addresses: IPv6 takes none where packets are too short for it.
    let size = LinkChange { mtu: asked.mtu, no_arp: Some(asked.no_arp), ..LinkChange::default() };
    netlink.change_link(index, &size).map_err(refused("change the MTU or flags"))?;
    let present = netlink.addresses().map_err(refused("list addresses"))?;
    for old in present.into_iter().filter(|old| old.link == index && is_unwanted(*old, asked)) {
        netlink.remove_address(old).map_err(refused("remove an address"))?;
    }
    for &(ip, prefix) in &asked.addresses {
        let address = Address::new(index, ip, prefix);
        netlink.add_address(address).map_err(refused(&format!("add the address {ip}/{prefix}")))?;
    }
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    netlink.change_link(index, &up).map_err(refused("begin the use"))
}

/// Those that IPv6 makes for itself, also of what routers advertise, are not the host's to take away.
fn is_unwanted(old: Address, asked: &Asked) -> bool {
    let is_own = matches!(old.ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local());
    !is_own && !old.is_advertised && !asked.addresses.contains(&(old.ip, old.prefix))
}

/// Another interface that has the name, as the kernel gave it, is called something else until its own turn comes.
fn make_way(netlink: &mut Netlink, name: &str) -> Result<(), Error> {
    let links = netlink.links().map_err(Error::system("list network interfaces"))?;
    let Some(other) = links.iter().find(|link| link.name == name) else { return Ok(()) };
    if other.is_loopback {
        return Err(Error::invalid(format!("interface.name {name:?}: is the loopback interface's")));
    }
    let away = LinkChange {
        name: Some(format!("unnamed{}", other.index)),
        up: Some(false),
        ..LinkChange::default()
    };
    // The kernel would change the name first, which it refuses while the interface is in use.
    let down = LinkChange { name: None, ..away.clone() };
    let renamed =
        netlink.change_link(other.index, &down).and_then(|()| netlink.change_link(other.index, &away));
    renamed.map_err(Error::system(format!("take the name {name} from another network interface")))
}
