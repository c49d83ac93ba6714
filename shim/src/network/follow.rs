//! What becomes of the pod's network while its machine runs: Docker makes a container's only after its start, and
//! networks are connected to containers, and disconnected.
//!
//! ```text
//! news -> look -> what is gone leaves the machine -> what is new is joined, plugged in, told -> what differs is told
//! ```

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use agent_protocol::types;
use netlink::Watch;
use slog::{Logger, info, warn};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{sleep, timeout},
};
use vmm::plug::{DeviceId, Nic, Pluggable};

use super::{
    join::Joined,
    scan::Found,
    told::{self, Told},
};
use crate::{
    error::{Error, Result},
    sandbox::Sandbox,
    thread,
};

/// How long the kernel may take to tell what there is, or to join an interface.
const KERNEL: Duration = Duration::from_secs(10);
/// How long QEMU may take to take an interface: longer than a guest may take to let go of a device before it.
const PLUGGING: Duration = Duration::from_secs(30);
/// How long after something failed all of it is tried again, twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What was done in the namespace, until it is undone.
pub(super) type Shared = Arc<Mutex<Option<Joined>>>;

/// An interface of the pod's that is in the machine.
pub(super) struct Member {
    /// As the guest was told of it.
    found: Found,
    /// What the machine has for it, unless it has had that from the start, and keeps it.
    device: Option<DeviceId>,
    /// Where the guest finds that, if it was told.
    place: String,
    /// What it had is kept for it while a macvtap has it.
    is_stripped: bool,
    /// It is a device of the host that the machine has, and so not in the namespace.
    is_taken: bool,
}

impl Member {
    pub(super) fn new(found: Found, device: Option<DeviceId>, is_stripped: bool) -> Member {
        Member { found, device, place: String::new(), is_stripped, is_taken: false }
    }

    /// The same of a device of the host, if it is one that the machine has.
    pub(super) fn taken(self, is_taken: bool) -> Member {
        Member { is_taken, ..self }
    }

    /// Whether it is the pod's still.
    pub(super) fn is_among(&self, seen: &[Found]) -> bool {
        self.is_taken || find(seen, &self.found).is_some()
    }

    fn name(&self) -> &str {
        &self.found.link.name
    }

    fn told(&self) -> types::Interface {
        types::Interface { device_path: self.place.clone(), ..told::interface(&self.found) }
    }
}

/// Follows one namespace.
pub(super) struct Follower {
    watch: AsyncFd<Watch>,
    joined: Shared,
    members: Vec<Member>,
    /// What the machine could not be given, as it was: another attempt is made when it is different.
    refused: Vec<Found>,
    told: Told,
    log: Logger,
}

impl Follower {
    /// # Errors
    /// The kernel's refusal to wait for news.
    pub(super) fn new(
        watch: Watch,
        joined: Shared,
        members: Vec<Member>,
        log: Logger,
    ) -> io::Result<Follower> {
        let told = Told::of(members.iter().map(|member| &member.found));
        // SAFETY: the watch has one descriptor as long as it lives, and stays where it is put.
        let watch = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) }?;
        Ok(Follower { watch, joined, members, refused: Vec::new(), told, log })
    }

    /// Until the sandbox is on its way down.
    pub(super) async fn run(mut self, sandbox: Weak<Sandbox>, going: impl Future<Output = ()> + Send) {
        tokio::pin!(going);
        let mut pause = FIRST_PAUSE;
        // The watch is older than what is known already.
        let mut all = true;
        loop {
            tokio::select! {
                () = &mut going => return,
                news = self.news() => match news {
                    Ok(()) => pause = FIRST_PAUSE,
                    Err(why) => {
                        warn!(self.log, "the pod's network is not followed any more"; "why" => why.to_string());
                        return;
                    }
                },
                // What failed for a moment is news to nobody.
                () = sleep(pause), if !all => pause = (2 * pause).min(LONGEST_PAUSE),
            }
            let Some(up) = sandbox.upgrade() else { return };
            all = tokio::select! {
                () = up.gone() => return,
                all = self.catch_up(&up) => all,
            };
        }
    }

    async fn news(&self) -> io::Result<()> {
        loop {
            let mut ready = self.watch.readable().await?;
            if let Ok(taken) = ready.try_io(|watch| watch.get_ref().take()) {
                return taken;
            }
        }
    }

    /// Has the machine have what the namespace has. What fails is told, and no harm to the rest. Whether it is worth to
    /// try all of it again.
    async fn catch_up(&mut self, sandbox: &Sandbox) -> bool {
        let seen = match self.in_namespace(Joined::look).await {
            Ok(seen) => seen,
            Err(why) => {
                warn!(self.log, "the pod's network cannot be looked at"; "why" => why.to_string());
                return false;
            }
        };
        self.take_out_others(sandbox, &seen).await;
        let brought = self.bring_in_new(sandbox, &seen).await;
        let changed = self.change(sandbox, &seen).await;
        let told = self.tell_ways(sandbox).await;
        brought && changed && told
    }

    async fn take_out_others(&mut self, sandbox: &Sandbox, seen: &[Found]) {
        let is_here = |member: &Member| member.is_among(seen);
        let (here, gone) = std::mem::take(&mut self.members).into_iter().partition(is_here);
        self.members = here;
        for member in gone {
            let name = member.name();
            info!(self.log, "a network interface is gone from the pod"; "name" => name);
            match &member.device {
                Some(device) if sandbox.unplug(device).await => {
                    self.release(member.found.link.index).await;
                    info!(self.log, "a network interface has left the machine"; "name" => name);
                }
                // QEMU has its tap still.
                Some(_) => {}
                None => self.silence(sandbox, &member).await,
            }
        }
    }

    /// A device that the machine has had from the start stays, so its addresses go.
    async fn silence(&self, sandbox: &Sandbox, member: &Member) {
        let bare = types::Interface { ip_addresses: Vec::new(), ..member.told() };
        match sandbox.agent().update_interface(bare).await {
            Ok(()) => {
                info!(self.log, "a network interface stays in the machine, as it was there from the start, without \
                addresses"; "name" => member.name())
            }
            Err(why) => warn!(self.log, "a network interface that is gone from the pod stays in the guest";
                "name" => member.name(), "why" => why.to_string()),
        }
    }

    async fn bring_in_new(&mut self, sandbox: &Sandbox, seen: &[Found]) -> bool {
        let mut all = true;
        self.refused.retain(|old| find(seen, old).is_some_and(|now| !now.differs(old)));
        for found in seen.iter().filter(|found| found.is_set_up()) {
            let is_same = |other: &Found| other.link.index == found.link.index;
            if self.members.iter().any(|member| is_same(&member.found)) || self.refused.iter().any(is_same) {
                continue;
            }
            match self.bring_in(sandbox, found).await {
                Ok(member) => self.members.push(member),
                Err(why) => {
                    warn!(self.log, "a network interface that came to the pod is not in its machine";
                        "name" => &found.link.name, "why" => why.to_string());
                    if matches!(why, Error::InvalidArgument(_)) {
                        self.refused.push(found.clone());
                    } else {
                        all = false;
                    }
                }
            }
        }
        all
    }

    async fn bring_in(&self, sandbox: &Sandbox, found: &Found) -> Result<Member> {
        let link = found.link.clone();
        info!(self.log, "a network interface has come to the pod"; "name" => &link.name);
        let late = found.clone();
        let joined = match self.in_namespace(move |joined| joined.join_late(&late)).await {
            Ok(nic) => self.plug(sandbox, found, nic).await,
            Err(why) => Err(why.into()),
        };
        match joined {
            Ok(member) => Ok(member),
            Err(Refused { why, is_held }) => {
                // QEMU would go on reading a tap that is gone.
                if !is_held {
                    self.release(link.index).await;
                }
                Err(why)
            }
        }
    }

    async fn plug(&self, sandbox: &Sandbox, found: &Found, nic: Nic) -> std::result::Result<Member, Refused> {
        let name = &found.link.name;
        let late =
            || Error::DeadlineExceeded(format!("QEMU has not taken it within {} s", PLUGGING.as_secs()));
        let plugged = timeout(PLUGGING, sandbox.plug(Pluggable::Nic(nic))).await;
        let plugged = plugged.map_err(|_| Refused { why: late(), is_held: true })?;
        let plugged = plugged.map_err(|error| Error::Failed(format!("plug it in: {error}")))?;
        let place = plugged.at.to_string();
        info!(self.log, "a network interface is plugged in"; "name" => name, "at" => &place);
        let member = Member { place, ..Member::new(found.clone(), Some(plugged.id.clone()), false) };
        if let Err(error) = sandbox.ask(sandbox.agent().update_interface(member.told())).await {
            let why = Error::Failed(format!("have the guest use it: {error}"));
            return Err(Refused { why, is_held: !sandbox.unplug(&plugged.id).await });
        }
        info!(self.log, "the guest has a network interface"; "name" => name);
        Ok(member)
    }

    async fn change(&mut self, sandbox: &Sandbox, seen: &[Found]) -> bool {
        let mut all = true;
        for member in self.members.iter_mut().filter(|member| !member.is_stripped) {
            let Some(now) = find(seen, &member.found) else { continue };
            let is_to_be_told = now.differs(&member.found);
            // That of the guest's cannot change.
            let mac = member.found.link.mac;
            let before = std::mem::replace(&mut member.found, now.clone());
            member.found.link.mac = mac;
            if !is_to_be_told {
                continue;
            }
            match sandbox.agent().update_interface(member.told()).await {
                Ok(()) => info!(self.log, "a network interface has changed"; "name" => member.name()),
                Err(why) => {
                    warn!(self.log, "a network interface has changed, and the guest's has not";
                        "name" => member.name(), "why" => why.to_string());
                    (member.found, all) = (before, false);
                }
            }
        }
        all
    }

    /// Routes are told all together, so those of all interfaces.
    async fn tell_ways(&mut self, sandbox: &Sandbox) -> bool {
        let told = Told::of(self.members.iter().map(|member| &member.found));
        let agent = sandbox.agent();
        if told.routes != self.told.routes {
            match agent.update_routes(told.routes.clone()).await {
                Ok(()) => info!(self.log, "the guest has other routes"; "routes" => told.routes.len()),
                Err(why) => {
                    warn!(self.log, "the guest does not have the pod's routes"; "why" => why.to_string());
                    return false;
                }
            }
        }
        let is_new = |neighbour: &&types::ARPNeighbor| !self.told.neighbours.contains(neighbour);
        let new: Vec<_> = told.neighbours.iter().filter(is_new).cloned().collect();
        if !new.is_empty()
            && let Err(why) = agent.add_arp_neighbors(new).await
        {
            warn!(self.log, "the guest does not have the pod's neighbours"; "why" => why.to_string());
            return false;
        }
        self.told = told;
        true
    }

    /// Nobody waits longer than the kernel is given; it may have others to serve first who change networks.
    async fn release(&self, link: u32) {
        let released = self.in_namespace(move |joined| {
            joined.release(link);
            Ok(())
        });
        if let Err(why) = released.await {
            warn!(self.log, "what a network interface had is not taken away yet"; "why" => why.to_string());
        }
    }

    async fn in_namespace<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Joined) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let joined = self.joined.clone();
        let done = thread::run("network", move || {
            let mut joined = joined.lock().unwrap_or_else(PoisonError::into_inner);
            let gone = || Error::Unavailable("the pod's network is let go of".into());
            joined.as_mut().ok_or_else(gone).and_then(act)
        });
        let late = || Error::DeadlineExceeded(format!("not done within {} s", KERNEL.as_secs()));
        timeout(KERNEL, done).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Why an interface is not in the machine.
struct Refused {
    why: Error,
    /// Whether QEMU has its tap all the same, or may come to have it.
    is_held: bool,
}

impl From<Error> for Refused {
    fn from(why: Error) -> Refused {
        Refused { why, is_held: false }
    }
}

/// The same interface as it is now.
fn find<'a>(seen: &'a [Found], found: &Found) -> Option<&'a Found> {
    seen.iter().find(|now| now.link.index == found.link.index)
}
