//! Copies of jobs in their stores that wait to be written. Each store has one writer at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Jobs whose note is to be written, by store; a store that is here has a writer.
#[derive(Debug, Default)]
pub struct Notes {
    waiting: Mutex<BTreeMap<PathBuf, BTreeSet<String>>>,
}

impl Notes {
    /// Puts a job on its store's list; says whether the store needs a writer.
    pub fn add(&self, store: &Path, name: &str) -> bool {
        let mut waiting = self.waiting();
        let needs_writer = !waiting.contains_key(store);
        waiting
            .entry(store.to_owned())
            .or_default()
            .insert(name.to_owned());
        needs_writer
    }

    /// The next job of a store; with none left, its writer is gone.
    pub fn next(&self, store: &Path) -> Option<String> {
        let mut waiting = self.waiting();
        let next = waiting.get_mut(store).and_then(BTreeSet::pop_first);
        if next.is_none() {
            waiting.remove(store);
        }
        next
    }

    /// There is no writer for a store after all: the next job needs one again.
    pub fn forget(&self, store: &Path) {
        self.waiting().remove(store);
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<PathBuf, BTreeSet<String>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
