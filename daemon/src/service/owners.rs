//! Whose images are whose: those of another machine, or of another job, are neither continued nor deleted.

use super::table::JobTable;
use crate::config::Config;
use crate::engine::Request;
use crate::job::JobRecord;
use crate::owner;
use crate::ownership;
use crate::state::StoredNote;
use hostdev::Machine;
use imagefmt::{Error, Owner, Result, Store, TakeOver};

/// What a sync of a job is.
pub fn sync_request(machine: &Machine, config: &Config, job: &JobRecord) -> Request {
    job.sync_request(machine, config)
}

/// Lets a sync take over the chain of a job that is over.
///
/// # Errors
/// When the store cannot be read.
pub fn allow_former_owner(table: &JobTable, store: &Store, request: &mut Request) -> Result<()> {
    if matches!(request.take_over, TakeOver::Never) {
        let (jobs, ours) = (request.chain_jobs(), request.owner.as_ref());
        request.take_over = ownership::former_owner(store, &jobs, ours, |owner| is_over(table, owner))?;
    }
    Ok(())
}

/// Refuses a new job of a name that a job of another machine has in this store, and may have for syncs to come.
///
/// # Errors
/// `Invalid` if there is one; otherwise when the store cannot be read.
pub fn check_note(store: &Store, request: &Request) -> Result<()> {
    let is_allowed = matches!(request.take_over, TakeOver::Always);
    match ownership::other_owner(store, &request.job, request.owner.as_ref())? {
        Some(other) if !is_allowed => Err(Error::invalid(format!(
            "store {} is used by {other}: give this job another name; or, if that one will not sync any more, \
             take its place with --take-over",
            store.label()
        ))),
        _ => Ok(()),
    }
}

/// The job of another machine whose note lies in a store under the name of one of this machine, unless that one has
/// taken its place or is to.
///
/// # Errors
/// When the store cannot be read.
pub fn strange_note(
    machine: &Machine,
    store: &Store,
    name: &str,
    job: Option<&JobRecord>,
    note: Option<&StoredNote>,
) -> Result<Option<Owner>> {
    let ours = owner::owner(machine, name, job.and_then(|job| job.id));
    let other = note.and_then(|note| ownership::other_writer(note, ours.as_ref()));
    if other.is_none() || job.is_some_and(|job| job.take_over) {
        return Ok(None);
    }
    let owner = store.owner_of(name)?;
    let is_ours = owner.is_some_and(|owner| ours.is_some_and(|ours| ours.is_same(&owner)));
    Ok(other.filter(|_| !is_ours))
}

/// Whether a job of this machine is over; `None` while jobs of a lost state are still being looked for.
fn is_over(table: &JobTable, owner: &Owner) -> Option<bool> {
    let table = table.lock();
    let known = table.jobs().values().find(|job| job.id == owner.job_id);
    match known {
        Some(job) => Some(!job.status.is_unfinished()),
        None if table.unreadable().contains_key(&owner.job) => Some(false),
        None => table
            .unseen()
            .is_ok_and(|unseen| unseen.is_empty())
            .then_some(true),
    }
}

/// Refuses to delete what another job has stored under the name of this one.
///
/// # Errors
/// `Invalid` if it belongs to another job; otherwise when the store cannot be read.
pub fn check_owner(table: &JobTable, machine: &Machine, store: &Store, job: &JobRecord) -> Result<()> {
    let Some(owner) = store.owner_of(&job.name)? else {
        return Ok(());
    };
    let ours = owner::owner(machine, &job.name, job.id);
    // A job of another name that continues the chain has left this one its images.
    if owner.job != job.name || ours.as_ref().is_some_and(|ours| ours.is_same(&owner)) {
        return Ok(());
    }
    if ownership::writes_no_more(store, &owner, ours.as_ref(), |owner| is_over(table, owner))? {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the images of job {} belong to {owner}: they are deleted there, or with `smc-image rm`",
        job.name
    )))
}
