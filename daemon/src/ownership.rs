//! Whose chains this machine's jobs may write to: their own, and those of jobs that are over.

use crate::state::StoredNote;
use imagefmt::{ErrorKind, Owner, Result, Store, TakeOver, Uuid};

/// Whose chain `ours` may take over without `--take-over`, when it writes to the chain of the first of `jobs` that the
/// store has: that of an owner that does not write any more.
///
/// `is_over` is what this machine knows of its own job: `None` if nothing. Of a job of another machine, only the note of
/// the job in the store tells whether it is over.
///
/// # Errors
/// When the store cannot be read.
pub fn former_owner(
    store: &Store,
    jobs: &[&str],
    ours: Option<&Owner>,
    is_over: impl Fn(&Owner) -> Option<bool>,
) -> Result<TakeOver> {
    for job in jobs {
        let Some(owner) = store.owner_of(job)? else {
            continue;
        };
        return Ok(if writes_no_more(store, &owner, ours, is_over)? {
            TakeOver::From(owner)
        } else {
            TakeOver::Never
        });
    }
    Ok(TakeOver::Never)
}

/// Whether an owner of a chain does not write to it any more, so that `ours` may take its place; `is_over` as in
/// [`former_owner`].
///
/// # Errors
/// When the store cannot be read.
pub fn writes_no_more(
    store: &Store,
    owner: &Owner,
    ours: Option<&Owner>,
    is_over: impl Fn(&Owner) -> Option<bool>,
) -> Result<bool> {
    let is_local = ours.is_some_and(|ours| ours.machine == owner.machine);
    // A user who syncs by hand, and then by another job on the same machine, has decided.
    let Some(id) = owner.job_id else {
        return Ok(is_local);
    };
    match is_over(owner).filter(|_| is_local) {
        Some(over) => Ok(over),
        None => Ok(ended(store, owner, id)?.unwrap_or(is_local)),
    }
}

/// The job of another machine that keeps its note in a store under a name, unless it is over.
///
/// # Errors
/// When the store cannot be read, or a newer smc wrote the note. A damaged one says nothing.
pub fn other_owner(store: &Store, name: &str, ours: Option<&Owner>) -> Result<Option<Owner>> {
    Ok(note(store, name)?.and_then(|note| other_writer(&note, ours)))
}

/// The note of a name in a store; a damaged one says nothing.
///
/// # Errors
/// When the store cannot be read, or a newer smc wrote the note.
pub fn note(store: &Store, name: &str) -> Result<Option<StoredNote>> {
    match store.note::<StoredNote>(name) {
        Ok(note) => Ok(Some(note)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damaged) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who wrote a note, if that is a job of another machine that is not over.
pub fn other_writer(note: &StoredNote, ours: Option<&Owner>) -> Option<Owner> {
    let is_ours = |owner: &Owner| ours.is_some_and(|ours| ours.machine == owner.machine);
    let owner = note.owner.clone().filter(|owner| !is_ours(owner));
    owner.filter(|owner| owner.job_id.and_then(|id| note.job_is_over(id)) != Some(true))
}

/// Whether a job is over, as its note in the store says; `None` if there is no note of this very job.
fn ended(store: &Store, owner: &Owner, id: Uuid) -> Result<Option<bool>> {
    match store.note::<StoredNote>(&owner.job) {
        Ok(note) => Ok(note.job_is_over(id)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        // What cannot be read does not say that it is over.
        Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported) => Ok(Some(false)),
        Err(error) => Err(error),
    }
}
