//! The containers of the pod, by id, and the steps of making and removing one that are not its own.

use std::{
    collections::HashMap,
    fs,
    io::{self, ErrorKind},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_protocol::{agent::CreateContainerRequest, convert};
use oci_spec::runtime::Spec;

use crate::{
    cgroup::Cgroup,
    container::Container,
    devices::Given,
    error::Error,
    id::Id,
    reaper::Reaper,
    runtime::{
        self, library, nodes,
        spec::{self, Shared},
        users,
    },
    worker,
};

/// How long the removal of a container's remains may take.
const REMOVE: Duration = Duration::from_secs(30);

/// Containers that exist, are being made, or are being removed.
#[derive(Default)]
pub(super) struct Containers(Mutex<HashMap<Id, Slot>>);

#[derive(Clone)]
enum Slot {
    Making,
    Made(Entry),
    Removing(Entry),
}

#[derive(Clone)]
struct Entry {
    container: Arc<Container>,
    mounted: Arc<[PathBuf]>,
}

impl Containers {
    /// A container that has been made; also while it is being removed, since its end is still of interest.
    pub(super) fn find(&self, id: &Id) -> Result<Arc<Container>, Error> {
        match self.table().get(id) {
            Some(Slot::Made(entry) | Slot::Removing(entry)) => Ok(Arc::clone(&entry.container)),
            _ => Err(not_found(id)),
        }
    }

    pub(super) fn ids(&self) -> Vec<Id> {
        self.table().keys().cloned().collect()
    }

    /// Keeps `id` for a container that is being made.
    pub(super) fn reserve(&self, id: &Id) -> Result<Making<'_>, Error> {
        let mut table = self.table();
        if table.contains_key(id) {
            return Err(Error::Exists { kind: "container", id: id.to_string() });
        }
        table.insert(id.clone(), Slot::Making);
        Ok(Making { containers: self, id: id.clone() })
    }

    pub(super) fn start_removal(&self, id: &Id) -> Result<Removal<'_>, Error> {
        let mut table = self.table();
        let entry = match table.get(id) {
            Some(Slot::Made(entry)) => entry.clone(),
            Some(_) => return Err(Error::state(format!("container {id}: being made or removed"))),
            None => return Err(not_found(id)),
        };
        table.insert(id.clone(), Slot::Removing(entry.clone()));
        Ok(Removal { containers: self, id: id.clone(), entry })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Id, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_found(id: &Id) -> Error {
    Error::NotFound { kind: "container", id: id.to_string() }
}

/// Gives the id up again when dropped before it is filled.
pub(super) struct Making<'a> {
    containers: &'a Containers,
    id: Id,
}

impl Making<'_> {
    pub(super) fn fill(self, container: Container, mounted: Vec<PathBuf>) {
        let entry = Entry { container: Arc::new(container), mounted: mounted.into() };
        self.containers.table().insert(self.id.clone(), Slot::Made(entry));
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let mut table = self.containers.table();
        if matches!(table.get(&self.id), Some(Slot::Making)) {
            table.remove(&self.id);
        }
    }
}

/// Puts the container back when dropped before it is finished, so that it can be removed once more.
pub(super) struct Removal<'a> {
    containers: &'a Containers,
    id: Id,
    entry: Entry,
}

impl Removal<'_> {
    pub(super) fn container(&self) -> &Container {
        &self.entry.container
    }

    pub(super) fn mounted(&self) -> &[PathBuf] {
        &self.entry.mounted
    }

    pub(super) fn finish(self) {
        self.containers.table().remove(&self.id);
    }
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.containers.table().get_mut(&self.id) {
            *slot = Slot::Made(self.entry.clone());
        }
    }
}

/// The configuration the guest makes the container from.
pub(super) fn adapt(
    id: &Id,
    request: &CreateContainerRequest,
    shared: &Shared,
    given: &Given,
) -> Result<Spec, Error> {
    let wire = request.oci.as_ref().ok_or_else(|| Error::invalid("OCI: missing"))?;
    if let Some(process) = wire.process.as_ref() {
        spec::warn_of_unknown_capabilities(id, process);
    }
    let spec = convert::spec_from_wire(wire).map_err(|error| Error::invalid(error.to_string()))?;
    let root = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    let user = users::resolve(&root, request.string_user.as_ref())?;
    let mut spec = spec::adapt(spec, id, shared, user)?;
    nodes::adapt(spec.linux_mut().get_or_insert_default(), &given.nodes)?;
    if let Some(process) = spec.process_mut() {
        given.addresses.adapt(process);
    }
    let bundle = runtime::bundle(id);
    fs::create_dir_all(&bundle).map_err(Error::system(format!("make {}", bundle.display())))?;
    Ok(spec)
}

/// Removes what is left of a container whose processes have ended, or that was never made in full.
pub(super) async fn clean_up(reaper: &Reaper, id: &Id) -> Result<(), Error> {
    let cgroup = Cgroup::of(id);
    if cgroup.path().exists() {
        cgroup.signal(libc::SIGKILL)?;
        cgroup.emptied().await?;
    }
    if library::knows(id) {
        let what = format!("remove container {id}");
        worker::run(reaper, &what, &[], REMOVE, || library::delete(id)).await?;
    }
    cgroup.remove()
}

/// Removes the bundle of a container. Not recursive, by intent: something of the host's may be in there.
pub(super) fn remove_bundle(id: &Id) -> Result<(), Error> {
    let bundle = runtime::bundle(id);
    let what = format!("remove {}", bundle.display());
    let fine = |result: io::Result<()>| match result {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => Ok(()),
        other => other,
    };
    let removed = fine(fs::remove_file(bundle.join("config.json")))
        .and_then(|()| fine(fs::remove_dir(bundle.join("rootfs"))))
        .and_then(|()| fine(fs::remove_dir(&bundle)));
    removed.map_err(Error::system(what))
}
