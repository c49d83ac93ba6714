//! What becomes of the pod's network while its machine runs: Docker makes a container's only after its start, and
//! networks are connected to containers, and disconnected.
//!
//! ```text
//! news -> look -> what is gone leaves the machine -> what is new is joined, plugged in, told -> what differs is told
//! ```
//!
//! Whoever starts a container whose network was made after its creation waits for that: see [`Question`].

use std::{
    io,
    mem::{replace, take},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use agent_protocol::types;
use netlink::Watch;
use slog::{Logger, info, warn};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use vmm::plug::{DeviceId, Nic, Pluggable};

use super::{
    join::Joined,
    names,
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

/// Asks for a look at what there is by now; answered when the machine has it, or with what it does not have.
pub(super) type Question = oneshot::Sender<Result<()>>;

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

    /// The same of a device of the host, if it is one that the machine has. Its number may be another's by now, in the
    /// namespace that it has left; no interface has 0.
    pub(super) fn taken(mut self, is_taken: bool) -> Member {
        if is_taken {
            self.found.link.index = 0;
        }
        Member { is_taken, ..self }
    }

    /// Whether it is the pod's still.
    pub(super) fn is_among(&self, seen: &[Found]) -> bool {
        self.is_taken || find(seen, &self.found).is_some_and(|now| !self.is_replaced(now))
    }

    fn name(&self) -> &str {
        &self.found.link.name
    }

    /// Whether `now`, of the same number, is another interface. What the machine has had from the start keeps its address.
    fn is_replaced(&self, now: &Found) -> bool {
        self.device.is_some() && now.link.mac != self.found.link.mac
    }

    fn told(&self) -> types::Interface {
        types::Interface { device_path: self.place.clone(), ..told::interface(&self.found) }
    }
}

/// What the machine could not be given, as it was, and why: another attempt is made when it is different.
struct Unfit {
    found: Found,
    why: String,
}

/// Follows one namespace.
pub(super) struct Follower {
    watch: AsyncFd<Watch>,
    joined: Shared,
    members: Vec<Member>,
    /// Gone from the pod, and in the machine still: the guest has not let go.
    leaving: Vec<Member>,
    /// Gone from the pod, and in the machine for good, which may be used again.
    idle: Vec<Member>,
    unfit: Vec<Unfit>,
    /// What went wrong this time and may go well the next time.
    troubles: Vec<String>,
    told: Told,
    /// Where names may be asked for, until the guest has been told, and what says whether they are.
    names: Option<(Arc<OwnedFd>, PathBuf)>,
    log: Logger,
}

impl Follower {
    /// # Errors
    /// The kernel's refusal to wait for news.
    pub(super) fn new(
        watch: Watch,
        joined: Shared,
        members: Vec<Member>,
        names: Option<(Arc<OwnedFd>, PathBuf)>,
        log: Logger,
    ) -> io::Result<Follower> {
        let told = Told::of(members.iter().map(|member| &member.found));
        // SAFETY: the watch has one descriptor as long as it lives, and stays where it is put.
        let watch = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) }?;
        Ok(Follower {
            watch,
            joined,
            members,
            leaving: Vec::new(),
            idle: Vec::new(),
            unfit: Vec::new(),
            troubles: Vec::new(),
            told,
            names,
            log,
        })
    }

    /// Until the sandbox is on its way down.
    pub(super) async fn run(
        mut self,
        sandbox: Weak<Sandbox>,
        going: impl Future<Output = ()> + Send,
        mut questions: mpsc::Receiver<Question>,
    ) {
        tokio::pin!(going);
        let mut pause = FIRST_PAUSE;
        loop {
            let mut question = None;
            // The watch is older than what is known already.
            tokio::select! {
                () = &mut going => return,
                news = self.news() => match news {
                    Ok(()) => pause = FIRST_PAUSE,
                    Err(why) => {
                        warn!(self.log, "the pod's network is not followed any more"; "why" => why.to_string());
                        return;
                    }
                },
                Some(asked) = questions.recv() => question = Some(asked),
                // What failed for a moment is news to nobody.
                () = sleep(pause), if !self.troubles.is_empty() => pause = (2 * pause).min(LONGEST_PAUSE),
            }
            let Some(up) = sandbox.upgrade() else { return };
            tokio::select! {
                () = up.gone() => return,
                () = self.catch_up(&up) => {}
            }
            if let Some(question) = question {
                tokio::select! {
                    () = up.gone() => return,
                    () = self.answer_to(question, &up) => {}
                }
            }
        }
    }

    /// Some troubles pass in a moment, and whoever asks fails with what is said now: so all is tried again.
    async fn answer_to(&mut self, question: Question, sandbox: &Sandbox) {
        if !self.troubles.is_empty() {
            sleep(FIRST_PAUSE).await;
            self.catch_up(sandbox).await;
        }
        // Whoever asked may have gone.
        let _ = question.send(self.answer());
    }

    /// Whether the machine has all that there is.
    fn answer(&self) -> Result<()> {
        let unfit = self.unfit.first().map(|unfit| &unfit.why);
        match self.troubles.first().or(unfit) {
            Some(why) => Err(Error::Failed(why.clone())),
            None => Ok(()),
        }
    }

    /// Something that did not go well, and is tried again.
    fn trouble(&mut self, what: &str, name: &str, why: &str) {
        warn!(self.log, "{what}"; "name" => name, "why" => why);
        self.troubles.push(format!("{what}: {name}: {why}"));
    }

    async fn news(&self) -> io::Result<()> {
        loop {
            let mut ready = self.watch.readable().await?;
            if let Ok(taken) = ready.try_io(|watch| watch.get_ref().take()) {
                return taken;
            }
        }
    }

    /// Has the machine have what the namespace has. What fails is told, and no harm to the rest.
    async fn catch_up(&mut self, sandbox: &Sandbox) {
        self.troubles.clear();
        let seen = match self.in_namespace(Joined::look).await {
            Ok(seen) => seen,
            Err(why) => {
                return self.trouble("the pod's network cannot be looked at", "all", &why.to_string());
            }
        };
        self.take_out_others(sandbox, &seen).await;
        self.bring_in_new(sandbox, &seen).await;
        self.change(sandbox, &seen).await;
        self.tell_ways(sandbox).await;
        self.serve_names(sandbox).await;
    }

    /// Once; an agent that does not take it never will.
    async fn serve_names(&mut self, sandbox: &Sandbox) {
        let is_time = |(_, resolver): &mut (_, PathBuf)| names::are_in_the_namespace(resolver);
        let Some((namespace, _)) = self.names.take_if(is_time) else { return };
        match names::serve(sandbox.vsock().as_ref(), namespace, &self.log).await {
            Ok(()) => info!(self.log, "the guest finds names of the container's network"),
            Err(why) => {
                warn!(self.log, "the guest does not find names of the container's network: its agent takes no \
                questions for them"; "why" => why.to_string())
            }
        }
    }

    async fn take_out_others(&mut self, sandbox: &Sandbox, seen: &[Found]) {
        let (here, gone) =
            take(&mut self.members).into_iter().partition::<Vec<_>, _>(|member| member.is_among(seen));
        self.members = here;
        if !gone.is_empty() {
            // The guest's routes by it go with its addresses, also where it is back already.
            self.told = Told::default();
        }
        for member in gone {
            info!(self.log, "a network interface is gone from the pod"; "name" => member.name());
            if member.device.is_some() {
                self.leaving.push(member);
            } else {
                self.silence(sandbox, &member).await;
                self.idle.push(member);
            }
        }
        for member in take(&mut self.leaving) {
            self.take_out(sandbox, member).await;
        }
    }

    /// QEMU has its tap until the guest has let go, so both wait for that.
    async fn take_out(&mut self, sandbox: &Sandbox, member: Member) {
        let Some(device) = &member.device else { return };
        if sandbox.unplug(device).await {
            self.release(member.found.link.index).await;
            info!(self.log, "a network interface has left the machine"; "name" => member.name());
        } else {
            let name = member.name().to_owned();
            self.leaving.push(member);
            self.trouble(
                "a network interface that is gone from the pod stays in the machine",
                &name,
                "not let go of",
            );
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

    async fn bring_in_new(&mut self, sandbox: &Sandbox, seen: &[Found]) {
        const WHAT: &str = "a network interface that came to the pod is not in its machine";
        self.unfit.retain(|old| find(seen, &old.found).is_some_and(|now| !now.differs(&old.found)));
        for found in seen.iter().filter(|found| found.is_set_up()) {
            let is_same = |other: &Found| other.link.index == found.link.index;
            let has_same_address = |other: &Member| other.found.link.mac == found.link.mac;
            let is_known = self.members.iter().any(|member| is_same(&member.found));
            if is_known || self.unfit.iter().any(|unfit| is_same(&unfit.found)) {
                continue;
            }
            let brought = if self.leaving.iter().any(has_same_address) {
                Err(Error::Unavailable("the machine still has another one of its address".into()))
            } else if let Some(place) = self.idle.iter().position(has_same_address) {
                self.bring_back(sandbox, place, found).await
            } else {
                self.bring_in(sandbox, found).await
            };
            let name = &found.link.name;
            match brought {
                Ok(member) => self.members.push(member),
                Err(Error::InvalidArgument(why)) => {
                    warn!(self.log, "{WHAT}"; "name" => name, "why" => &why);
                    self.unfit.push(Unfit { found: found.clone(), why: format!("{WHAT}: {name}: {why}") });
                }
                Err(why) => self.trouble(WHAT, name, &why.to_string()),
            }
        }
    }

    /// Joins what the machine has for that address already.
    async fn bring_back(&mut self, sandbox: &Sandbox, place: usize, found: &Found) -> Result<Member> {
        let (gone, late) = (self.idle[place].found.link.index, found.clone());
        info!(self.log, "a network interface has come back to the pod"; "name" => &found.link.name);
        let joined = self.in_namespace(move |joined| joined.join_again(gone, &late)).await;
        if !matches!(joined, Err(Error::InvalidArgument(_))) {
            self.idle[place].found.link.index = found.link.index;
        }
        joined?;
        let member = Member::new(found.clone(), None, false);
        let told = sandbox.ask(sandbox.agent().update_interface(member.told())).await;
        told.map_err(|error| Error::Failed(format!("have the guest use it: {error}")))?;
        self.idle.remove(place);
        info!(self.log, "the guest has a network interface"; "name" => member.name());
        Ok(member)
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

    async fn change(&mut self, sandbox: &Sandbox, seen: &[Found]) {
        let mut untold = Vec::new();
        for member in self.members.iter_mut().filter(|member| !member.is_stripped) {
            let Some(now) = find(seen, &member.found) else { continue };
            let is_to_be_told = now.differs(&member.found);
            // That of the guest's cannot change.
            let mac = member.found.link.mac;
            let before = replace(&mut member.found, now.clone());
            member.found.link.mac = mac;
            if !is_to_be_told {
                continue;
            }
            match sandbox.agent().update_interface(member.told()).await {
                Ok(()) => info!(self.log, "a network interface has changed"; "name" => member.name()),
                Err(why) => {
                    untold.push((member.name().to_owned(), why.to_string()));
                    member.found = before;
                }
            }
        }
        for (name, why) in untold {
            self.trouble("a network interface has changed, and the guest's has not", &name, &why);
        }
    }

    /// Routes are told all together, so those of all interfaces.
    async fn tell_ways(&mut self, sandbox: &Sandbox) {
        let told = Told::of(self.members.iter().map(|member| &member.found));
        let agent = sandbox.agent();
        if told.routes != self.told.routes {
            match agent.update_routes(told.routes.clone()).await {
                Ok(()) => info!(self.log, "the guest has other routes"; "routes" => told.routes.len()),
                Err(why) => {
                    return self.trouble("the guest does not have the pod's", "routes", &why.to_string());
                }
            }
        }
        let is_new = |neighbour: &&types::ARPNeighbor| !self.told.neighbours.contains(neighbour);
        let new: Vec<_> = told.neighbours.iter().filter(is_new).cloned().collect();
        if !new.is_empty()
            && let Err(why) = agent.add_arp_neighbors(new).await
        {
            return self.trouble("the guest does not have the pod's", "neighbours", &why.to_string());
        }
        self.told = told;
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
