//! Things by id, where an id can be taken before its thing exists.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::error::{Error, Result};

/// Named things; `None` while one is being made.
pub(crate) struct Table<T> {
    what: &'static str,
    entries: Mutex<HashMap<String, Option<Arc<T>>>>,
}

/// An id that is taken for a thing to come; dropped unfilled, it is free again.
pub(crate) struct Reserved<'a, T> {
    table: &'a Table<T>,
    id: String,
}

impl<T> Table<T> {
    /// A table of `what`s, as errors call them.
    pub(crate) fn new(what: &'static str) -> Table<T> {
        Table { what, entries: Mutex::new(HashMap::new()) }
    }

    /// # Errors
    /// `NotFound` for an unknown id and for one whose thing is still being made.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<T>> {
        let found = self.entries().get(id).cloned().flatten();
        found.ok_or_else(|| Error::NotFound(format!("{} {id}", self.what)))
    }

    /// # Errors
    /// `AlreadyExists` when the id is taken.
    pub(crate) fn reserve(&self, id: &str) -> Result<Reserved<'_, T>> {
        let mut entries = self.entries();
        if entries.contains_key(id) {
            return Err(Error::AlreadyExists(format!("{} {id}", self.what)));
        }
        entries.insert(id.to_string(), None);
        Ok(Reserved { table: self, id: id.to_string() })
    }

    /// Frees the id of `thing`.
    ///
    /// # Errors
    /// `NotFound` when somebody else has done so; the id may be another thing's by now.
    pub(crate) fn remove(&self, id: &str, thing: &Arc<T>) -> Result<()> {
        let mut entries = self.entries();
        let is_its =
            entries.get(id).is_some_and(|there| there.as_ref().is_some_and(|it| Arc::ptr_eq(it, thing)));
        if !is_its {
            return Err(Error::NotFound(format!("{} {id}", self.what)));
        }
        entries.remove(id);
        Ok(())
    }

    /// Every id that is taken.
    pub(crate) fn names(&self) -> Vec<String> {
        self.entries().keys().cloned().collect()
    }

    /// Everything that is made.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.entries().values().flatten().cloned().collect()
    }

    /// Whether nothing is made; things to come do not count.
    pub(crate) fn has_nothing_made(&self) -> bool {
        self.entries().values().all(Option::is_none)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<T>>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Reserved<'_, T> {
    /// The thing is made.
    pub(crate) fn fill(self, thing: Arc<T>) {
        self.table.entries().insert(self.id.clone(), Some(thing));
    }
}

impl<T> Drop for Reserved<'_, T> {
    fn drop(&mut self) {
        let mut entries = self.table.entries();
        if entries.get(&self.id).is_some_and(Option::is_none) {
            entries.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_while_its_thing_is_made_and_free_when_that_fails() {
        let table = Table::new("container");
        let reserved = table.reserve("c1").unwrap();
        assert!(matches!(table.reserve("c1"), Err(Error::AlreadyExists(_))));
        assert!(matches!(table.get("c1"), Err(Error::NotFound(_))));
        drop(reserved);
        table.reserve("c1").unwrap().fill(Arc::new(1));
        assert_eq!(*table.get("c1").unwrap(), 1);
        assert!(matches!(table.reserve("c1"), Err(Error::AlreadyExists(_))));
        let first = table.get("c1").unwrap();
        table.remove("c1", &first).unwrap();
        assert!(table.has_nothing_made());
        table.reserve("c1").unwrap().fill(Arc::new(2));
        assert!(matches!(table.remove("c1", &first), Err(Error::NotFound(_))));
        assert_eq!(*table.get("c1").unwrap(), 2);
    }
}
