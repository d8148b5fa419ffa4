//! Writes the copies of jobs in their stores, in the background: a store that does not answer holds up only the writer of its
//! own notes.

use super::owners;
use super::parts::Parts;
use crate::engine::Place;
use crate::owner;
use crate::ownership;
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// Brings the note of a job up to date, in the background. With a target there is none: it takes images, and nothing that could
/// tell this machine what to do.
pub fn queue(parts: &Arc<Parts>, place: &Place, name: &str) {
    if let Place::Store(store) = place {
        queue_in(parts, store, name);
    }
}

/// The same of a job of this store.
pub fn queue_in(parts: &Arc<Parts>, store: &Path, name: &str) {
    if !parts.notes.add(store, name) {
        return;
    }
    let (shared, path) = (parts.clone(), store.to_owned());
    let thread = thread::Builder::new().name("notes".to_owned());
    if let Err(error) = thread.spawn(move || write_notes(&shared, &path)) {
        tracing::warn!("cannot start a thread to write notes: {error}");
        parts.notes.forget(store);
    }
}

/// Writes notes until none is waiting.
fn write_notes(parts: &Parts, store: &Path) {
    while let Some(name) = parts.notes.next(store) {
        if let Err(error) = write_note(parts, store, &name) {
            tracing::warn!(
                job = name,
                "the copy of the job in its store could not be updated: {error:#}"
            );
        }
    }
}

/// As the job is now: a job that is gone, or has another store, has no note here. That of a job whose record cannot be
/// read is left as it is, and so is the note of another machine's job.
fn write_note(parts: &Parts, store: &Path, name: &str) -> anyhow::Result<()> {
    let (note, job) = {
        let table = parts.table.lock();
        if table.unreadable().contains_key(name) {
            return Ok(());
        }
        (table.note(store, name)?, table.jobs().get(name).cloned())
    };
    let opened = parts.stores.get(store)?;
    let before = ownership::note(&opened, name)?;
    if let Some(other) = owners::strange_note(&parts.machine, &opened, name, job.as_ref(), before.as_ref())? {
        anyhow::bail!("the store has the copy of {other} under this name, which is not changed");
    }
    let Some(note) = note else {
        return Ok(opened.remove_note(name)?);
    };
    let owner = owner::owner(&parts.machine, name, job.and_then(|job| job.id));
    opened.put_note(name, &note.of(owner).replacing(before))?;
    Ok(())
}
