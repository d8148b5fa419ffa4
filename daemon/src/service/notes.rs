//! Copies of jobs in their stores: written in the background, so that a store that does not answer holds up only the
//! writer of its own notes. Each store has one writer at a time.

use super::manager::Manager;
use crate::ownership;
use crate::state::StoredNote;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Jobs whose note is to be written, by store; a store that is here has a writer.
#[derive(Debug, Default)]
pub struct Notes {
    waiting: Mutex<BTreeMap<PathBuf, BTreeSet<String>>>,
}

impl Notes {
    /// Puts a job on its store's list; says whether the store needs a writer.
    fn add(&self, store: &Path, name: &str) -> bool {
        let mut waiting = self.waiting();
        let needs_writer = !waiting.contains_key(store);
        waiting
            .entry(store.to_owned())
            .or_default()
            .insert(name.to_owned());
        needs_writer
    }

    /// The next job of a store; with none left, its writer is gone.
    fn next(&self, store: &Path) -> Option<String> {
        let mut waiting = self.waiting();
        let next = waiting.get_mut(store).and_then(BTreeSet::pop_first);
        if next.is_none() {
            waiting.remove(store);
        }
        next
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<PathBuf, BTreeSet<String>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Manager {
    /// Brings the note of a job up to date, in the background.
    pub(super) fn queue_note(self: &Arc<Self>, store: &Path, name: &str) {
        if !self.notes.add(store, name) {
            return;
        }
        let (manager, path) = (self.clone(), store.to_owned());
        let thread = thread::Builder::new().name("notes".to_owned());
        if let Err(error) = thread.spawn(move || manager.write_notes(&path)) {
            tracing::warn!("cannot start a thread to write notes: {error}");
            self.notes.waiting().remove(store);
        }
    }

    /// Writes notes until none is waiting.
    fn write_notes(&self, store: &Path) {
        while let Some(name) = self.notes.next(store) {
            if let Err(error) = self.write_note(store, &name) {
                tracing::warn!(
                    job = name,
                    "the copy of the job in its store could not be updated: {error:#}"
                );
            }
        }
    }

    /// As the job is now: a job that is gone, or has another store, has no note here. That of a job whose record cannot be
    /// read is left as it is, and so is the note of another machine's job.
    fn write_note(&self, store: &Path, name: &str) -> anyhow::Result<()> {
        let (note, job) = {
            let table = self.table.lock();
            if table.unreadable().contains_key(name) {
                return Ok(());
            }
            (table.note(store, name)?, table.jobs().get(name).cloned())
        };
        let opened = self.stores.get(store)?;
        if let Some(other) = self.strange_note(&opened, name, job.as_ref())? {
            anyhow::bail!("the store has the copy of {other} under this name, which is not changed");
        }
        let Some(note) = note else {
            return Ok(opened.remove_note(name)?);
        };
        let owner = ownership::owner(&self.machine, name, job.and_then(|job| job.id));
        let before = opened.note::<StoredNote>(name).ok();
        opened.put_note(name, &note.of(owner).replacing(before))?;
        Ok(())
    }
}
