//! The pod's network, as the host says it is.
//!
//! ```text
//! request -> asked (checked, nothing done yet) -> interface, routes, neighbours (the kernel is told)
//! ```

mod asked;
mod interface;
pub(crate) mod names;
mod place;
#[cfg(test)]
mod tests;
mod told;

use agent_protocol::types;
use netlink::{Netlink, Route};

use crate::{devices::Devices, error::Error};
use asked::{Asked, AskedNeighbour, AskedRoute};

/// Gives the network interface of the address that is asked for its name, size and addresses, and puts it to use.
/// Waits for one that is not there yet. Returns what it is then.
///
/// # Errors
///
/// [`Error::Invalid`] naming the field, [`Error::Timeout`] where none came, [`Error::System`] if the kernel refuses.
pub(crate) async fn update_interface(
    devices: &Devices,
    asked: &types::Interface,
) -> Result<types::Interface, Error> {
    let asked = Asked::parse(asked)?;
    let link = interface::find(devices, &asked).await?;
    interface::change(&mut open()?, &link, &asked)?;
    let mut all = interfaces()?.into_iter();
    all.find(|interface| interface.name == asked.name).ok_or_else(|| not_found(&asked.name))
}

/// Makes these the routes there are, besides those that the kernel has made for addresses. Returns all of them.
///
/// # Errors
///
/// [`Error::Invalid`] naming the field, [`Error::NotFound`] where there is no such interface, and nothing is changed;
/// [`Error::System`] if the kernel refuses one.
pub(crate) fn update_routes(asked: &[types::Route]) -> Result<Vec<types::Route>, Error> {
    let asked = asked.iter().map(AskedRoute::parse).collect::<Result<Vec<_>, _>>()?;
    let mut netlink = open()?;
    let mut wanted = Vec::new();
    for route in asked {
        let link = index(&mut netlink, &route.device)?;
        wanted.push(Route { link, ..route.route });
    }
    // A gateway has to be reachable when a route by it is made.
    wanted.sort_by_key(|route| route.gateway.is_some());
    let refused = Error::system("list routes");
    for old in netlink.routes().map_err(refused)?.iter().filter(|route| !route.is_kernels) {
        netlink.remove_route(old).map_err(Error::system(format!("remove a route {}", told::of(old))))?;
    }
    for route in &wanted {
        netlink.add_route(route).map_err(Error::system(format!("add a route {}", told::of(route))))?;
    }
    routes()
}

/// All network interfaces.
///
/// # Errors
///
/// [`Error::System`] if the kernel does not tell.
pub(crate) fn interfaces() -> Result<Vec<types::Interface>, Error> {
    let mut netlink = open()?;
    let links = netlink.links().map_err(Error::system("list network interfaces"))?;
    let addresses = netlink.addresses().map_err(Error::system("list addresses"))?;
    Ok(links.iter().map(|link| told::interface(link, &addresses)).collect())
}

/// All routes.
///
/// # Errors
///
/// [`Error::System`] if the kernel does not tell.
pub(crate) fn routes() -> Result<Vec<types::Route>, Error> {
    let mut netlink = open()?;
    let links = netlink.links().map_err(Error::system("list network interfaces"))?;
    let routes = netlink.routes().map_err(Error::system("list routes"))?;
    Ok(routes.iter().map(|route| told::route(route, &links)).collect())
}

/// Makes neighbours known for good.
///
/// # Errors
///
/// As [`update_routes`].
pub(crate) fn add_neighbours(asked: &[types::ARPNeighbor]) -> Result<(), Error> {
    let asked = asked.iter().map(AskedNeighbour::parse).collect::<Result<Vec<_>, _>>()?;
    let mut netlink = open()?;
    let mut wanted = Vec::new();
    for neighbour in asked {
        let link = index(&mut netlink, &neighbour.device)?;
        wanted.push(netlink::Neighbour { link, ..neighbour.neighbour });
    }
    for neighbour in wanted {
        let what = format!("add the neighbour {}", neighbour.ip);
        netlink.add_neighbour(&neighbour).map_err(Error::system(what))?;
    }
    Ok(())
}

fn open() -> Result<Netlink, Error> {
    Netlink::open().map_err(Error::system("speak to the kernel's networking"))
}

/// The kernel's number of an interface.
fn index(netlink: &mut Netlink, name: &str) -> Result<u32, Error> {
    let links = netlink.links().map_err(Error::system("list network interfaces"))?;
    links.iter().find(|link| link.name == name).map(|link| link.index).ok_or_else(|| not_found(name))
}

fn not_found(name: &str) -> Error {
    Error::NotFound { kind: "network interface", id: name.to_owned() }
}
