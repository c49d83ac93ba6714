//! What the run directory says of the pod's network, for whoever comes after a shim that died.

use std::{
    fs, io,
    path::{Path, PathBuf},
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
        let noted = Noted { namespace: self.namespace.clone(), identity: self.identity, changed, taken };
        let (path, next) = (self.run_dir.join(RECORD), self.run_dir.join(NEXT));
        let text = serde_json::to_vec(&noted).map_err(io::Error::from);
        let written = text.and_then(|text| fs::write(&next, text)).and_then(|()| fs::rename(&next, &path));
        written.map_err(Error::io(path.display()))
    }
}

/// Undoes what the record in `run_dir` says of a namespace that is still there. Whoever did it must be gone.
///
/// # Errors
/// What could not be undone, or a record that cannot be read.
pub(crate) fn sweep(run_dir: &Path) -> Result<()> {
    let path = run_dir.join(RECORD);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::io(path.display()))?,
    };
    let record: Noted = serde_json::from_slice(&text)
        .map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
    let undoing = std::thread::Builder::new().name("network".into()).spawn(move || record.undo());
    let undone = undoing.map_err(Error::io("thread for network"))?.join();
    undone.unwrap_or_else(|_| Err(Error::Failed("network: the thread ended without an answer".into())))
}

impl Noted {
    /// On a thread of its own. Goes on after what cannot be undone.
    fn undo(&self) -> Result<()> {
        let given = self.taken.iter().map(|device| device.give_back(Path::new(SYSFS)));
        let given = given.fold(Ok(()), Result::and);
        given.and(self.undo_in_namespace())
    }

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
