//! What the run directory says of the pod's network, for whoever comes after a shim that died.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{RecvTimeoutError, channel},
    thread::Builder,
    time::Duration,
};

use netlink::{Link, Netlink};
use serde::{Deserialize, Serialize};
use vmm::vfio::SYSFS;

use super::{
    join::{Stripped, queue_length},
    namespace::{self, Identity},
    physical::Physical,
    plan::{How, Step},
};
use crate::error::{Error, Result};

/// The file.
const RECORD: &str = "network.json";

/// Where it is while it is written, so that it is never half there.
const NEXT: &str = "network.json.next";

/// How long devices may take to be given back: the kernel resets them, and waits until nobody has them.
const GIVING: Duration = Duration::from_secs(8);

/// Where the record of one namespace is.
pub(super) struct Record {
    run_dir: PathBuf,
    namespace: PathBuf,
    identity: Identity,
}

/// What is changed of a namespace that outlives the shim: taps go with their descriptors.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    namespace: PathBuf,
    identity: Identity,
    changed: Vec<Changed>,
    /// Devices of the host that a machine has, or is about to have, which outlive the namespace, too.
    #[serde(default)]
    taken: Vec<Physical>,
}

/// An interface, and what is done to it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    index: u32,
    name: String,
    /// How many packets could wait to be sent, if it was noted.
    #[serde(default)]
    queue_length: Option<u32>,
    /// The numbers of interfaces that are made for it.
    made: Vec<u32>,
    /// Whether its ingress discipline is ours.
    has_ingress: bool,
    /// What it had before a macvtap got it.
    had: Option<Stripped>,
}

impl Changed {
    fn by(step: &Step) -> Changed {
        let ifb = step.slowed_by.as_ref().map(|ifb| ifb.index);
        let (tap, had) = match &step.how {
            How::Bridged { index, kept, .. } => {
                (Some(*index), Some(Stripped { index: step.link, mac: step.mac, kept: kept.clone() }))
            }
            How::Redirected { .. } | How::Tap | How::VhostUser { .. } | How::Physical(_) => (None, None),
        };
        Changed {
            index: step.link,
            name: step.name.clone(),
            queue_length: Some(step.queue_length),
            made: tap.into_iter().chain(ifb).collect(),
            has_ingress: ifb.is_some() || matches!(step.how, How::Redirected { .. }),
            had,
        }
    }

    /// Goes on after what cannot be undone.
    fn undo(&self, netlink: &mut Netlink, links: &[Link]) -> Result<()> {
        let here = |index| links.iter().find(|link| link.index == index);
        let mut outcome = Ok(());
        for made in self.made.iter().filter_map(|index| here(*index)) {
            outcome = outcome.and(netlink.remove_link(made.index));
        }
        if here(self.index).is_some_and(|link| link.name == self.name) {
            if self.has_ingress && netlink.has_ingress(self.index).unwrap_or(true) {
                outcome = outcome.and(netlink.remove_ingress(self.index));
            }
            if netlink.is_rate_limited(self.index).unwrap_or(false) {
                outcome = outcome.and(netlink.unlimit_rate(self.index));
            }
            if let Some(length) = self.queue_length {
                outcome = outcome.and(netlink.change_link(self.index, &queue_length(length)));
            }
            if let Some(had) = &self.had {
                outcome = outcome.and(had.give_back(netlink));
            }
        }
        outcome.map_err(Error::io(format!("network interface {}", self.name)))
    }
}

impl Record {
    pub(super) fn new(run_dir: &Path, namespace: &Path, identity: Identity) -> Record {
        Record { run_dir: run_dir.to_path_buf(), namespace: namespace.to_path_buf(), identity }
    }

    /// Says all that is done, or about to be.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write(&self, steps: &[Step]) -> Result<()> {
        let changed = steps.iter().map(Changed::by).collect();
        let taken = steps.iter().filter_map(|step| match &step.how {
            How::Physical(device) => Some(device.clone()),
            _ => None,
        });
        let taken = taken.collect();
        Noted { namespace: self.namespace.clone(), identity: self.identity, changed, taken }
            .write(&self.run_dir)
    }
}

/// Undoes what the record in `run_dir` says: of a namespace that is still there first, as devices may take their time.
/// Whoever did it must be gone.
///
/// # Errors
/// What could not be undone, or a record that cannot be read.
pub(crate) fn sweep(run_dir: &Path) -> Result<()> {
    let Some(record) = Noted::read(run_dir)? else { return Ok(()) };
    let left = Noted {
        namespace: record.namespace.clone(),
        changed: Vec::new(),
        taken: record.taken.clone(),
        identity: record.identity,
    };
    let unanswered = || Error::Failed("network: the thread ended without an answer".into());
    let undoing = Builder::new().name("network".into()).spawn(move || record.undo_in_namespace());
    let undoing = undoing.map_err(Error::io("thread for network"));
    let undone = undoing.and_then(|undoing| undoing.join().unwrap_or_else(|_| Err(unanswered())));
    if undone.is_ok() && !left.taken.is_empty() {
        // The namespace may be another sandbox's by the time that somebody goes on with the devices.
        let _ = left.write(run_dir);
    }
    all_of([undone, give_back(left.taken, GIVING)])
}

/// On a thread, which goes on after `patience`.
///
/// # Errors
/// Which devices are not their drivers', and what a human can do.
pub(super) fn give_back(taken: Vec<Physical>, patience: Duration) -> Result<()> {
    if taken.is_empty() {
        return Ok(());
    }
    let names = names(&taken);
    let (done, outcome) = channel();
    let give = move || done.send(all_of(taken.iter().map(|device| device.give_back(Path::new(SYSFS)))));
    Builder::new().name("devices".into()).spawn(give).map_err(Error::io("thread for devices"))?;
    outcome.recv_timeout(patience).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Err(Error::DeadlineExceeded(format!(
            "{names}: not given back within {patience:?}; the kernel waits until no process has them open"
        ))),
        RecvTimeoutError::Disconnected => {
            Err(Error::Failed(format!("{names}: the thread that gives back ended without an answer")))
        }
    })
}

/// The devices of the host that the record in `run_dir` names and that no driver of the host's has again, if any. While
/// there are, nothing else on the host knows whose they are.
pub(crate) fn outstanding(run_dir: &Path) -> Option<String> {
    let taken = Noted::read(run_dir).ok()??.taken;
    let out: Vec<_> = taken.into_iter().filter(|device| device.is_out(Path::new(SYSFS))).collect();
    (!out.is_empty()).then(|| names(&out))
}

fn names(devices: &[Physical]) -> String {
    devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One outcome that says all that went wrong.
pub(super) fn all_of(outcomes: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let mut errors: Vec<Error> = outcomes.into_iter().filter_map(Result::err).collect();
    if errors.len() > 1 {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        return Err(Error::Failed(texts.join("; ")));
    }
    errors.pop().map_or(Ok(()), Err)
}

impl Noted {
    fn read(run_dir: &Path) -> Result<Option<Noted>> {
        let path = run_dir.join(RECORD);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io(path.display()))?,
        };
        let read = serde_json::from_slice(&text);
        read.map(Some).map_err(|error| Error::Failed(format!("{}: {error}", path.display())))
    }

    fn write(&self, run_dir: &Path) -> Result<()> {
        let (path, next) = (run_dir.join(RECORD), run_dir.join(NEXT));
        let text = serde_json::to_vec(self).map_err(io::Error::from);
        let written = text.and_then(|text| fs::write(&next, text)).and_then(|()| fs::rename(&next, &path));
        written.map_err(Error::io(path.display()))
    }

    /// On a thread of its own. Goes on after what cannot be undone.
    fn undo_in_namespace(&self) -> Result<()> {
        if !self.namespace.exists() || namespace::enter(&self.namespace)? != self.identity {
            return Ok(());
        }
        let mut netlink = Netlink::open().map_err(Error::io("netlink"))?;
        let links = netlink.links().map_err(Error::io("network interfaces"))?;
        let undone = self.changed.iter().map(|changed| changed.undo(&mut netlink, &links));
        undone.fold(Ok(()), Result::and)
    }
}
