//! The processes of a container besides its first.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{error::Error, id::Id, process::Process};

/// Most processes remembered at a time, ended ones the host has not asked about included.
const MAX_PROCESSES: usize = 1024;

/// Processes by id. An id may be used again once its process has ended; a process is forgotten when the
/// host knows its end and has read all its output, and room is needed.
#[derive(Default)]
pub(super) struct Execs(Mutex<HashMap<Id, Slot>>);

enum Slot {
    Making,
    Made(Arc<Process>),
}

impl Slot {
    fn is_free(&self) -> bool {
        matches!(self, Self::Made(process) if process.has_ended())
    }

    fn is_settled(&self) -> bool {
        matches!(self, Self::Made(process) if process.is_settled())
    }
}

impl Execs {
    pub(super) fn find(&self, id: &Id) -> Result<Arc<Process>, Error> {
        match self.table().get(id) {
            Some(Slot::Made(process)) => Ok(Arc::clone(process)),
            _ => Err(Error::NotFound { kind: "process", id: id.to_string() }),
        }
    }

    /// Keeps `id` for a process that is being made.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] if it is in use, [`Error::State`] if there are too many.
    pub(super) fn reserve(&self, id: &Id) -> Result<Reservation<'_>, Error> {
        let mut table = self.table();
        if table.get(id).is_some_and(|slot| !slot.is_free()) {
            return Err(Error::Exists { kind: "process", id: id.to_string() });
        }
        if table.len() >= MAX_PROCESSES {
            table.retain(|_, slot| !slot.is_settled());
        }
        if table.len() >= MAX_PROCESSES {
            return Err(Error::state(format!("{MAX_PROCESSES} processes and more in one container")));
        }
        table.insert(id.clone(), Slot::Making);
        Ok(Reservation { execs: self, id: id.clone() })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Id, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the id up again when dropped before it is filled.
pub(super) struct Reservation<'a> {
    execs: &'a Execs,
    id: Id,
}

impl Reservation<'_> {
    pub(super) fn fill(self, process: Process) {
        self.execs.table().insert(self.id.clone(), Slot::Made(Arc::new(process)));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut table = self.execs.table();
        if matches!(table.get(&self.id), Some(Slot::Making)) {
            table.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_id_is_taken_until_it_is_given_up() {
        let execs = Execs::default();
        let id = Id::parse("exec", "e1").unwrap();
        let first = execs.reserve(&id).unwrap();
        assert!(matches!(execs.reserve(&id), Err(Error::Exists { .. })));
        assert!(matches!(execs.find(&id), Err(Error::NotFound { .. })));
        drop(first);
        assert!(execs.reserve(&id).is_ok());
    }
}
