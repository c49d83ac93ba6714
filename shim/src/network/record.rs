//! What the run directory says of the pod's network, for whoever comes after a shim that died.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use netlink::Netlink;
use serde::{Deserialize, Serialize};

use super::{
    join::Stripped,
    namespace::{self, Identity},
    plan::{How, Step},
};
use crate::error::{Error, Result};

/// The file.
const RECORD: &str = "network.json";

/// What is changed of a namespace that outlives the shim: the taps go with their descriptors.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    namespace: PathBuf,
    identity: Identity,
    redirected: Vec<Redirected>,
    bridged: Vec<Bridged>,
}

/// An interface that a macvtap has the address of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Bridged {
    name: String,
    had: Stripped,
    /// The macvtap's number.
    tap: u32,
}

/// An interface whose ingress discipline is ours.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Redirected {
    index: u32,
    name: String,
}

/// Says what is about to be done.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(run_dir: &Path, namespace: &Path, identity: Identity, steps: &[Step]) -> Result<()> {
    let redirected = steps.iter().filter(|step| matches!(step.how, How::Redirected { .. }));
    let redirected = redirected.map(|step| Redirected { index: step.link, name: step.name.clone() });
    let bridged = steps.iter().filter_map(|step| match &step.how {
        How::Bridged { index, kept, .. } => Some(Bridged {
            name: step.name.clone(),
            had: Stripped { index: step.link, mac: step.mac, kept: kept.clone() },
            tap: *index,
        }),
        _ => None,
    });
    let (redirected, bridged) = (redirected.collect(), bridged.collect());
    let record = Record { namespace: namespace.to_path_buf(), identity, redirected, bridged };
    let path = run_dir.join(RECORD);
    let text = serde_json::to_vec(&record).map_err(io::Error::from);
    text.and_then(|text| fs::write(&path, text)).map_err(Error::io(path.display()))
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
    let record: Record = serde_json::from_slice(&text)
        .map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
    let undoing = std::thread::Builder::new().name("network".into()).spawn(move || record.undo());
    let undone = undoing.map_err(Error::io("thread for network"))?.join();
    undone.unwrap_or_else(|_| Err(Error::Failed("network: the thread ended without an answer".into())))
}

impl Record {
    /// On a thread of its own.
    fn undo(&self) -> Result<()> {
        if !self.namespace.exists() || namespace::enter(&self.namespace)? != self.identity {
            return Ok(());
        }
        let mut netlink = Netlink::open().map_err(Error::io("netlink"))?;
        let links = netlink.links().map_err(Error::io("network interfaces"))?;
        let mut outcome = Ok(());
        for Bridged { name, had, tap } in &self.bridged {
            if links.iter().any(|link| link.index == *tap) {
                let removed = netlink.remove_link(*tap);
                outcome = outcome.and(removed.map_err(Error::io(format!("macvtap of {name}"))));
            }
            if links.iter().any(|link| link.index == had.index && link.name == *name) {
                let given = had.give_back(&mut netlink);
                outcome = outcome.and(given.map_err(Error::io(format!("network interface {name}"))));
            }
        }
        for Redirected { index, name } in &self.redirected {
            if !links.iter().any(|link| link.index == *index && link.name == *name) {
                continue;
            }
            let undone = match netlink.has_ingress(*index) {
                Ok(true) => netlink.remove_ingress(*index),
                other => other.map(drop),
            };
            outcome = outcome.and(undone.map_err(Error::io(format!("filters at network interface {name}"))));
        }
        outcome
    }
}
