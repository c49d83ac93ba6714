//! What is done to the pod's namespace, and undone.

use std::io;

use configuration::Rates;
use netlink::{LinkChange, Mac, Netlink, Saved};
use serde::{Deserialize, Serialize};
use vmm::plug::Nic;

use super::{
    Manner,
    plan::{How, Ifb, Step},
    random, tap,
};
use crate::error::{Error, Result};

/// Everything that was done in one namespace, which this keeps alive; dropped, it is undone.
pub(super) struct Joined {
    netlink: Netlink,
    done: Vec<Done>,
}

enum Done {
    /// An interface that was made, by its number.
    Made(u32),
    /// The discipline of an interface that our filter is attached to.
    Ingress(u32),
    /// How fast an interface sends.
    Limited(u32),
    /// What an interface had before a macvtap got it.
    Stripped(Stripped),
}

impl Joined {
    /// Of the namespace that `netlink` is of; nothing is done yet.
    pub(super) fn new(netlink: Netlink) -> Joined {
        Joined { netlink, done: Vec::new() }
    }

    /// Makes one step, on a thread in the namespace.
    ///
    /// # Errors
    /// What the kernel refused; what was done until then stays until this is dropped.
    pub(super) fn take(&mut self, step: &Step, manner: Manner) -> Result<Nic> {
        let rates = manner.rates;
        let queues = match &step.how {
            How::Redirected { tap } => {
                let queues = tap::make(tap, manner.queues)?;
                self.redirect(step, tap, rates)?;
                queues
            }
            How::Bridged { tap, index, kept } => {
                self.bridge(step, tap, *index, kept)?;
                self.limit(*index, tap, rates.tx)?;
                self.slow(step, rates.rx)?;
                tap::macvtap(*index, manner.queues)?
            }
            How::Tap => {
                let queues = tap::attach(&step.name, manner.queues)?;
                self.limit(step.link, &step.name, rates.rx)?;
                self.slow(step, rates.tx)?;
                queues
            }
        };
        let vhost = if manner.vhost { tap::vhost(queues.len())? } else { Vec::new() };
        Ok(Nic { queues, vhost, mac: step.mac.0 })
    }

    /// The macvtap takes the interface's address, so that it gets its packets, and nobody else answers for it.
    fn bridge(&mut self, step: &Step, tap: &str, index: u32, kept: &Saved) -> Result<()> {
        let refused = || Error::io(format!("macvtap {tap} on network interface {}", step.name));
        self.done.push(Done::Stripped(Stripped { index: step.link, mac: step.mac, kept: kept.clone() }));
        self.netlink.clear_addresses(step.link).map_err(refused())?;
        let other = LinkChange { mac: Some(random::mac()?), ..LinkChange::default() };
        self.netlink.change_link(step.link, &other).map_err(refused())?;
        self.netlink.add_macvtap(index, tap, step.link, step.mac, step.mtu).map_err(refused())?;
        self.done.push(Done::Made(index));
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        self.netlink.change_link(index, &up).map_err(refused())
    }

    /// Whatever comes in at the interface goes to the machine, and the other way round.
    fn redirect(&mut self, step: &Step, tap: &str, rates: Rates) -> Result<()> {
        let links = self.netlink.links().map_err(Error::io("network interfaces"))?;
        let made = links.iter().find(|link| link.name == tap).map(|link| link.index);
        let tap_index =
            made.ok_or_else(|| Error::Failed(format!("tap {tap}: gone as soon as it was made")))?;
        self.done.push(Done::Made(tap_index));
        let up = LinkChange { mtu: Some(step.mtu), up: Some(true), ..LinkChange::default() };
        self.netlink.change_link(tap_index, &up).map_err(Error::io(format!("tap {tap}")))?;
        for (index, name) in [(step.link, step.name.as_str()), (tap_index, tap)] {
            self.add_ingress(index, name)?;
        }
        // Each sends what came in at the other.
        self.limit(tap_index, tap, rates.rx)?;
        self.limit(step.link, &step.name, rates.tx)?;
        for (from, to) in [(step.link, tap_index), (tap_index, step.link)] {
            let what = format!("redirect from {} by {tap}", step.name);
            self.netlink.redirect(from, to).map_err(Error::io(what))?;
        }
        Ok(())
    }

    fn add_ingress(&mut self, index: u32, name: &str) -> Result<()> {
        self.netlink.add_ingress(index).map_err(not_ours(name))?;
        self.done.push(Done::Ingress(index));
        Ok(())
    }

    /// What comes in at the interface takes a detour, on which it is sent no faster than it may.
    fn slow(&mut self, step: &Step, rate: u64) -> Result<()> {
        let Some(Ifb { name, index }) = &step.slowed_by else { return Ok(()) };
        self.netlink.add_ifb(*index, name).map_err(unlimited(name))?;
        self.done.push(Done::Made(*index));
        self.limit(*index, name, rate)?;
        self.add_ingress(step.link, &step.name)?;
        let what = format!("redirect from {} by {name}", step.name);
        self.netlink.redirect(step.link, *index).map_err(Error::io(what))
    }

    fn limit(&mut self, index: u32, name: &str, rate: u64) -> Result<()> {
        if rate > 0 {
            self.netlink.limit_rate(index, rate).map_err(unlimited(name))?;
            self.done.push(Done::Limited(index));
        }
        Ok(())
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        for done in self.done.drain(..).rev() {
            // What is not there any more went with its interface, or with the namespace's owner.
            let _ = match done {
                Done::Made(index) => self.netlink.remove_link(index),
                Done::Ingress(index) => self.netlink.remove_ingress(index),
                Done::Limited(index) => self.netlink.unlimit_rate(index),
                Done::Stripped(stripped) => stripped.give_back(&mut self.netlink),
            };
        }
    }
}

/// What an interface had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stripped {
    pub(super) index: u32,
    pub(super) mac: Mac,
    pub(super) kept: Saved,
}

impl Stripped {
    /// The interface has it again.
    pub(super) fn give_back(&self, netlink: &mut Netlink) -> io::Result<()> {
        let own = LinkChange { mac: Some(self.mac), ..LinkChange::default() };
        // Addresses are worth having even where the other one stays.
        let outcome = netlink.change_link(self.index, &own);
        outcome.and(netlink.restore(&self.kept))
    }
}

/// Filters that are there already would be overtaken by ours, or ours by them.
fn not_ours(name: &str) -> impl FnOnce(io::Error) -> Error {
    move |error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::FailedPrecondition(format!(
            "network interface {name} has an ingress queueing discipline: another runtime's, or left by a sandbox that \
             was not cleared up; `tc qdisc del dev {name} ingress` in the pod's network namespace removes it"
        )),
        _ => Error::io(format!("filters at network interface {name}"))(error),
    }
}

/// Another's discipline would be lost, and a kernel without this one, or without detours, says only that.
fn unlimited(name: &str) -> impl FnOnce(io::Error) -> Error {
    const KEYS: &str = "rx_rate_limiter_max_rate and tx_rate_limiter_max_rate";
    move |error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::FailedPrecondition(format!(
            "network interface {name} has a queueing discipline already, so that {KEYS} cannot be kept; \
             `tc qdisc del dev {name} root` in the pod's network namespace removes it"
        )),
        io::ErrorKind::NotFound | io::ErrorKind::Unsupported => Error::FailedPrecondition(format!(
            "network interface {name}: {KEYS} need the host's kernel to have the modules sch_tbf and ifb: {error}"
        )),
        _ => Error::io(format!("rate of network interface {name}"))(error),
    }
}
