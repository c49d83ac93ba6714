//! How each interface is joined to the machine, before anything is done.

use std::path::{Path, PathBuf};

use configuration::InternetworkingModel;
use netlink::{Kind, Link, Mac, Saved};
use vmm::vfio::SYSFS;

use super::{Manner, physical::Physical, random, scan::Found, vhost_user};
use crate::error::{Error, Result};

/// One interface on its way into the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// The kernel's number of it.
    pub(super) link: u32,
    pub(super) name: String,
    pub(super) mac: Mac,
    /// The longest packet, in bytes.
    pub(super) mtu: u32,
    /// How many packets may wait to be sent, which queueing disciplines make more of.
    pub(super) queue_length: u32,
    pub(super) how: How,
    /// What slows what comes in at the interface, where that is not sent on by one of the host's.
    pub(super) slowed_by: Option<Ifb>,
}

/// An interface that sends what it is sent back to where that came in: packets can be held up only where they are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ifb {
    pub(super) name: String,
    pub(super) index: u32,
}

/// How that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum How {
    /// By a tap of this name, and what comes in at the one goes out at the other.
    Redirected { tap: String },
    /// By a macvtap of this name and number on it, which has its address; what it had itself is kept for later.
    Bridged { tap: String, index: u32, kept: Saved },
    /// It is a tap, and the machine is what is behind it.
    Tap,
    /// Another program moves its packets, which listens there.
    VhostUser { socket: PathBuf },
    /// It is a device of the host, which the machine has instead.
    Physical(Physical),
}

/// What becomes of each of `found`, whose taps are numbered from `first` on.
///
/// # Errors
/// `InvalidArgument` with the name of an interface that cannot be had, and why.
pub(super) fn steps(
    found: &[Found],
    first: usize,
    manner: Manner,
    keep: &mut dyn FnMut(u32) -> Result<Saved>,
) -> Result<Vec<Step>> {
    let numbered = found.iter().zip(first..);
    let steps: Vec<_> =
        numbered.map(|(found, number)| step(found, number, manner, keep)).collect::<Result<_>>()?;
    for (place, step) in steps.iter().enumerate() {
        differs(step, &steps[..place])?;
    }
    Ok(steps)
}

/// A guest finds its interfaces by their addresses.
///
/// # Errors
/// `InvalidArgument` with the names of two that have the same.
pub(super) fn differs(step: &Step, others: &[Step]) -> Result<()> {
    match others.iter().find(|other| other.mac == step.mac) {
        None => Ok(()),
        Some(other) => Err(Error::InvalidArgument(format!(
            "network interfaces {} and {}: have one Ethernet address, {}, and a guest tells its interfaces apart by \
             those: ipvlans have to be on different interfaces of the host",
            other.name, step.name, step.mac
        ))),
    }
}

fn step(
    found: &Found,
    number: usize,
    manner: Manner,
    keep: &mut dyn FnMut(u32) -> Result<Saved>,
) -> Result<Step> {
    let link = &found.link;
    let refused = |why: &str| Error::InvalidArgument(format!("network interface {}: {why}", link.name));
    let how = how(found, number, manner, keep, &refused)?;
    if matches!(how, How::VhostUser { .. } | How::Physical(_)) {
        may_be_special(manner).map_err(refused)?;
    }
    let mac = link.mac.ok_or_else(|| refused("has no Ethernet address"))?;
    let is_slowed = match how {
        How::Redirected { .. } | How::VhostUser { .. } | How::Physical(_) => false,
        How::Bridged { .. } => manner.rates.rx > 0,
        How::Tap => manner.rates.tx > 0,
    };
    let ifb = || Ok(Ifb { name: format!("ifb{number}_kata"), index: random::index()? });
    let slowed_by = is_slowed.then(ifb).transpose()?;
    let (index, mtu, queue_length) = (link.index, link.mtu, link.queue_length);
    Ok(Step { link: index, name: link.name.clone(), mac, mtu, queue_length, how, slowed_by })
}

/// What has no tap is not the host's to slow, and nothing that is plugged in later.
fn may_be_special(manner: Manner) -> std::result::Result<(), &'static str> {
    if manner.rates.rx > 0 || manner.rates.tx > 0 {
        return Err("cannot be slowed: unset rx_rate_limiter_max_rate and tx_rate_limiter_max_rate");
    }
    if manner.is_late {
        return Err("has come too late: the machine can have it from the start only");
    }
    Ok(())
}

/// The device that the interface is, if the machine is to have devices.
fn physical(link: &Link, manner: Manner) -> std::result::Result<Physical, String> {
    if !manner.passes_through {
        let why = "a device of the host, which is passed through by VFIO: set cold_plug_vfio or hot_plug_vfio; and \
                   the network namespace has to have a path";
        return Err(why.to_owned());
    }
    let address = link.pci_device.as_deref();
    let address = address.ok_or("a device of the host, and the kernel tells of no PCI device that it is")?;
    Physical::at(Path::new(SYSFS), address)
}

fn how(
    found: &Found,
    number: usize,
    manner: Manner,
    keep: &mut dyn FnMut(u32) -> Result<Saved>,
    refused: &dyn Fn(&str) -> Error,
) -> Result<How> {
    let link = &found.link;
    if link.kind == Kind::Device {
        return physical(link, manner).map(How::Physical).map_err(|why| refused(&why));
    }
    if let Some(socket) = vhost_user::socket_for(found).map_err(|why| refused(&why))? {
        return Ok(How::VhostUser { socket });
    }
    match (&link.kind, manner.model) {
        (Kind::Veth | Kind::Macvlan, InternetworkingModel::Macvtap) => {
            let tap = format!("tap{number}_kata");
            Ok(How::Bridged { tap, index: random::index()?, kept: keep(link.index)? })
        }
        // An ipvlan has the address of what it is on, and keeps it: no macvtap could have that.
        (Kind::Veth | Kind::Macvlan | Kind::Ipvlan, _) => {
            Ok(How::Redirected { tap: format!("tap{number}_kata") })
        }
        (Kind::Tun, _) => Ok(How::Tap),
        (Kind::Macvtap, _) => Err(refused("a macvtap cannot be given to a virtual machine yet")),
        (other, _) => Err(refused(&format!(
            "an interface of kind {} cannot be given to a virtual machine: veth, macvlan, ipvlan and tap can",
            if let Kind::Other(kind) = other { kind } else { "device" }
        ))),
    }
}
