//! What is done to the pod's namespace, and undone.

use std::{fs::File, io, path::Path};

use configuration::{InternetworkingModel, Rates};
use netlink::{LinkChange, Mac, Netlink, Saved};
use serde::{Deserialize, Serialize};
use vmm::{
    plug::Nic,
    spec::{VhostUser, VhostUserKind},
    vfio::{HostDevice, SYSFS},
};

use super::{
    Manner, namespace,
    physical::Physical,
    plan::{self, How, Ifb, Step},
    random,
    record::{Record, all_of},
    scan::{self, Found},
    tap,
};
use crate::error::{Error, Result};

/// Everything that was done in one namespace, which this keeps alive; dropped, it is undone.
pub(super) struct Joined {
    netlink: Netlink,
    /// The namespace, for other threads to enter it.
    namespace: File,
    manner: Manner,
    /// For whoever comes after a shim that died, where the namespace outlives that.
    record: Option<Record>,
    /// How each interface was joined that still is.
    steps: Vec<Step>,
    /// The number of the next interface.
    next: usize,
    done: Vec<Done>,
}

/// What was done to, or for, the interface of the pod's with this number.
struct Done {
    link: u32,
    what: What,
}

/// What a machine has for an interface of the pod's.
pub(super) enum Joint {
    Nic(Nic),
    VhostUser(VhostUser),
    /// The interface is not in the namespace any more.
    Device(HostDevice),
}

/// What that was.
enum What {
    /// An interface that was made, by its number.
    Made(u32),
    /// The discipline of an interface that our filter is attached to.
    Ingress(u32),
    /// How fast an interface sends.
    Limited(u32),
    /// How many packets may wait at the pod's interface.
    Queues(u32),
    /// What an interface had before a macvtap got it.
    Stripped(Stripped),
    /// The device that it was, which its driver lost.
    Taken(Physical),
}

impl Joined {
    /// Of the namespace that `netlink` is of, and this thread in; nothing is done yet.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) fn new(netlink: Netlink, manner: Manner, record: Option<Record>) -> Result<Joined> {
        let namespace = namespace::own()?;
        Ok(Joined { netlink, namespace, manner, record, steps: Vec::new(), next: 0, done: Vec::new() })
    }

    /// Joins interfaces, on a thread in the namespace.
    ///
    /// # Errors
    /// What kind of interface cannot be had, or what the kernel refused; what was done until then stays until it is
    /// released, or this is dropped.
    pub(super) fn join(&mut self, found: &[Found]) -> Result<Vec<Joint>> {
        self.join_by(found, self.manner)
    }

    fn join_by(&mut self, found: &[Found], manner: Manner) -> Result<Vec<Joint>> {
        let netlink = &mut self.netlink;
        let mut keep = |link| netlink.save(link).map_err(Error::io("addresses and routes"));
        let steps = plan::steps(found, self.next, manner, &mut keep)?;
        for step in &steps {
            plan::differs(step, &self.steps)?;
        }
        self.next += steps.len();
        self.steps.extend(steps.iter().cloned());
        if let Some(record) = &self.record {
            record.write(&self.steps)?;
        }
        steps.iter().map(|step| self.take(step)).collect()
    }

    /// The same for an interface that came later, on any thread, which is in the namespace then. Never by a macvtap: whoever
    /// brings it goes on setting it up, which what is stripped of its addresses does not let them.
    ///
    /// # Errors
    /// As of [`Joined::join`]; nothing is left of it.
    pub(super) fn join_late(&mut self, found: &Found) -> Result<Nic> {
        namespace::enter_again(&self.namespace)?;
        let manner = Manner { model: InternetworkingModel::Tcfilter, is_late: true, ..self.manner };
        match self.join_by(std::slice::from_ref(found), manner).map(|mut joints| joints.pop()) {
            Ok(Some(Joint::Nic(nic))) => Ok(nic),
            Ok(_) => Err(Error::Failed("an interface is one interface".into())),
            Err(error) => {
                self.release(found.link.index);
                Err(error)
            }
        }
    }

    /// Has the tap that was joined to interface number `gone` joined to another one that has come with its address: a
    /// machine keeps the interfaces that it was started with.
    ///
    /// # Errors
    /// `InvalidArgument` for what has no tap of that kind, or what the kernel refused; the tap waits on, for `found`'s
    /// number, then.
    pub(super) fn join_again(&mut self, gone: u32, found: &Found) -> Result<()> {
        let name = &found.link.name;
        let kept = self.steps.iter().position(|step| step.link == gone);
        let (Some(place), Some(made)) = (kept, self.made_for(gone)) else {
            return Err(Error::InvalidArgument(format!("network interface {name}: nothing is kept for it")));
        };
        let How::Redirected { tap } = self.steps[place].how.clone() else {
            return Err(Error::InvalidArgument(format!(
                "network interface {name}: what the machine had for its address was a macvtap, and went"
            )));
        };
        self.undo_but_made(gone);
        let link = &found.link;
        let (name, mtu, queue_length) = (link.name.clone(), link.mtu, link.queue_length);
        let step = Step { link: link.index, name, mtu, queue_length, ..self.steps[place].clone() };
        self.steps[place] = step.clone();
        self.done.iter_mut().filter(|done| done.link == gone).for_each(|done| done.link = step.link);
        if let Some(record) = &self.record {
            record.write(&self.steps)?;
        }
        self.done(&step, What::Queues(step.queue_length));
        let connected = self.connect(&step, made, &tap, self.manner.rates);
        if connected.is_err() {
            self.undo_but_made(step.link);
        }
        connected
    }

    fn made_for(&self, link: u32) -> Option<u32> {
        self.done.iter().find_map(|done| match done.what {
            What::Made(made) if done.link == link => Some(made),
            _ => None,
        })
    }

    fn undo_but_made(&mut self, link: u32) {
        let is_undone = |done: &Done| done.link == link && !matches!(done.what, What::Made(_));
        let (its, others) = self.done.drain(..).partition(is_undone);
        self.done = others;
        // What has a tap is no device.
        let _ = undo(its, &mut self.netlink);
    }

    /// Undoes what was done for the interface of this number, which may be gone. Its machine must have let go of it.
    pub(super) fn release(&mut self, link: u32) {
        let (its, others) = self.done.drain(..).partition(|done| done.link == link);
        self.done = others;
        let is_out = undo(its, &mut self.netlink).is_err();
        self.steps.retain(|step| step.link != link || (is_out && matches!(step.how, How::Physical(_))));
        self.write_again();
    }

    fn write_again(&self) {
        if let Some(record) = &self.record {
            // What it says too much is not there any more for whoever would undo it.
            let _ = record.write(&self.steps);
        }
    }

    /// Undoes all of it; only the devices of the host that are not given back stay in the record.
    ///
    /// # Errors
    /// Which devices those are, and what a human can do.
    pub(super) fn undo(&mut self) -> Result<()> {
        let undone = undo(self.done.drain(..).collect(), &mut self.netlink);
        if undone.is_err() {
            self.steps.retain(|step| matches!(step.how, How::Physical(_)));
            self.write_again();
        }
        undone
    }

    /// Undoes all of it because of `error`, which says then what is not undone.
    pub(super) fn given_up(mut self, error: Error) -> Error {
        match self.undo() {
            Ok(()) => error,
            Err(left) => Error::Failed(format!("{error}; {left}")),
        }
    }

    /// What is in the namespace, but for what was made there.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) fn look(&mut self) -> Result<Vec<Found>> {
        let mut all = scan::all(&mut self.netlink).map_err(Error::io("the pod's network"))?;
        let is_ours =
            |link| self.done.iter().any(|done| matches!(done.what, What::Made(made) if made == link));
        all.retain(|found| !is_ours(found.link.index));
        Ok(all)
    }

    /// Whether there is nothing to be undone.
    pub(super) fn is_bare(&self) -> bool {
        self.done.is_empty()
    }

    /// Whether the interface of this number has given what it had to a macvtap.
    pub(super) fn is_stripped(&self, link: u32) -> bool {
        self.done.iter().any(|done| done.link == link && matches!(done.what, What::Stripped(_)))
    }

    fn take(&mut self, step: &Step) -> Result<Joint> {
        match &step.how {
            How::VhostUser { socket } => {
                let device = VhostUser::new(socket, VhostUserKind::Net(step.mac.0), None);
                let refused =
                    |error| Error::InvalidArgument(format!("network interface {}: {error}", step.name));
                device.map(Joint::VhostUser).map_err(refused)
            }
            How::Physical(device) => {
                self.done(step, What::Taken(device.clone()));
                device.take(Path::new(SYSFS)).map(Joint::Device)
            }
            How::Redirected { .. } | How::Bridged { .. } | How::Tap => self.tap(step).map(Joint::Nic),
        }
    }

    fn tap(&mut self, step: &Step) -> Result<Nic> {
        let Manner { queues, rates, .. } = self.manner;
        self.done(step, What::Queues(step.queue_length));
        let queues = match &step.how {
            How::Redirected { tap } => {
                let queues = tap::make(tap, queues)?;
                self.redirect(step, tap, rates)?;
                queues
            }
            How::Bridged { tap, index, kept } => {
                self.bridge(step, tap, *index, kept)?;
                self.limit(step, *index, tap, rates.tx)?;
                self.slow(step, rates.rx)?;
                tap::macvtap(*index, queues)?
            }
            How::Tap => {
                let queues = tap::attach(&step.name, queues)?;
                self.limit(step, step.link, &step.name, rates.rx)?;
                self.slow(step, rates.tx)?;
                queues
            }
            // They have none.
            How::VhostUser { .. } | How::Physical(_) => Vec::new(),
        };
        let vhost = if self.manner.vhost { tap::vhost(queues.len())? } else { Vec::new() };
        Ok(Nic { queues, vhost, mac: step.mac.0 })
    }

    fn done(&mut self, step: &Step, what: What) {
        self.done.push(Done { link: step.link, what });
    }

    /// The macvtap takes the interface's address, so that it gets its packets, and nobody else answers for it.
    fn bridge(&mut self, step: &Step, tap: &str, index: u32, kept: &Saved) -> Result<()> {
        let refused = || Error::io(format!("macvtap {tap} on network interface {}", step.name));
        self.done(step, What::Stripped(Stripped { index: step.link, mac: step.mac, kept: kept.clone() }));
        self.netlink.clear_addresses(step.link).map_err(refused())?;
        let other = LinkChange { mac: Some(random::mac()?), ..LinkChange::default() };
        self.netlink.change_link(step.link, &other).map_err(refused())?;
        self.netlink.add_macvtap(index, tap, step.link, step.mac, step.mtu).map_err(refused())?;
        self.done(step, What::Made(index));
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        self.netlink.change_link(index, &up).map_err(refused())
    }

    /// Whatever comes in at the interface goes to the machine, and the other way round.
    fn redirect(&mut self, step: &Step, tap: &str, rates: Rates) -> Result<()> {
        let links = self.netlink.links().map_err(Error::io("network interfaces"))?;
        let made = links.iter().find(|link| link.name == tap).map(|link| link.index);
        let tap_index =
            made.ok_or_else(|| Error::Failed(format!("tap {tap}: gone as soon as it was made")))?;
        self.done(step, What::Made(tap_index));
        self.connect(step, tap_index, tap, rates)
    }

    fn connect(&mut self, step: &Step, tap_index: u32, tap: &str, rates: Rates) -> Result<()> {
        let up = LinkChange { mtu: Some(step.mtu), up: Some(true), ..LinkChange::default() };
        self.netlink.change_link(tap_index, &up).map_err(Error::io(format!("tap {tap}")))?;
        for (index, name) in [(step.link, step.name.as_str()), (tap_index, tap)] {
            self.add_ingress(step, index, name)?;
        }
        // Each sends what came in at the other.
        self.limit(step, tap_index, tap, rates.rx)?;
        self.limit(step, step.link, &step.name, rates.tx)?;
        for (from, to) in [(step.link, tap_index), (tap_index, step.link)] {
            let what = format!("redirect from {} by {tap}", step.name);
            self.netlink.redirect(from, to).map_err(Error::io(what))?;
        }
        Ok(())
    }

    fn add_ingress(&mut self, step: &Step, index: u32, name: &str) -> Result<()> {
        self.netlink.add_ingress(index).map_err(not_ours(name))?;
        self.done(step, What::Ingress(index));
        Ok(())
    }

    /// What comes in at the interface takes a detour, on which it is sent no faster than it may.
    fn slow(&mut self, step: &Step, rate: u64) -> Result<()> {
        let Some(Ifb { name, index }) = &step.slowed_by else { return Ok(()) };
        self.netlink.add_ifb(*index, name).map_err(unlimited(name))?;
        self.done(step, What::Made(*index));
        self.limit(step, *index, name, rate)?;
        self.add_ingress(step, step.link, &step.name)?;
        let what = format!("redirect from {} by {name}", step.name);
        self.netlink.redirect(step.link, *index).map_err(Error::io(what))
    }

    fn limit(&mut self, step: &Step, index: u32, name: &str, rate: u64) -> Result<()> {
        if rate > 0 {
            self.netlink.limit_rate(index, rate).map_err(unlimited(name))?;
            self.done(step, What::Limited(index));
        }
        Ok(())
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // Nobody is left to tell; the record stays.
        let _ = self.undo();
    }
}

/// Goes on after what cannot be undone.
///
/// # Errors
/// Which devices of the host are not given back.
fn undo(all: Vec<Done>, netlink: &mut Netlink) -> Result<()> {
    let mut given = Vec::new();
    for Done { link, what } in all.into_iter().rev() {
        // What is not there any more went with its interface, or with the namespace's owner.
        let _ = match what {
            What::Made(index) => netlink.remove_link(index),
            What::Ingress(index) => netlink.remove_ingress(index),
            What::Limited(index) => netlink.unlimit_rate(index),
            What::Queues(length) => netlink.change_link(link, &queue_length(length)),
            What::Stripped(stripped) => stripped.give_back(netlink),
            What::Taken(device) => {
                given.push(device.give_back(Path::new(SYSFS)));
                Ok(())
            }
        };
    }
    all_of(given)
}

/// Makes what an interface had before it got a queueing discipline.
pub(super) fn queue_length(length: u32) -> LinkChange {
    LinkChange { queue_length: Some(length), ..LinkChange::default() }
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
