//! Deleting jobs, and their images where that is asked for.

use super::background::Task;
use super::note_writer;
use super::owners;
use super::parts::Parts;
use super::table::Locked;
use super::tracking;
use crate::job::{JobRecord, Refusal, Refused};
use crate::state::Unreadable;
use crate::stores::{ACTION_PATIENCE, Stores};
use api::{Action, Status};
use imagefmt::{ErrorKind, JobImages, Store};
use remote::TargetFiles;
use std::sync::Arc;

/// Forgets a job. With `purge` its images go first, in the background; says whether the job is gone already.
///
/// # Errors
/// With `purge`, when an image is in use: nothing has changed then.
pub fn delete(parts: &Arc<Parts>, name: &str, purge: bool) -> Refused<bool> {
    if parts.table.lock().unreadable().contains_key(name) {
        return delete_unreadable(parts, name, purge).map(|()| true);
    }
    if purge {
        let job = {
            let table = parts.table.lock();
            let job = parts.job_for(&table, name, Action::Delete)?;
            refuse_on_target(&job)?;
            refuse_needed(&table, &job)?;
            job
        };
        ask_whether_in_use(&parts.stores, &job)?;
    }
    let going = {
        let table = parts.table.lock();
        parts.job_for(&table, name, Action::Delete)?
    };
    // While it is known still: afterwards nobody would.
    if going.unwatch_owed {
        tracking::release(parts, &going);
    }
    let job = {
        let mut table = parts.table.lock();
        let job = parts.job_for(&table, name, Action::Delete)?;
        if purge {
            table.update(name, |job| {
                job.status = Status::Deleting;
                job.purge = true;
                job.next_sync = None;
                Ok(None)
            })?
        } else {
            table.remove(name)?;
            job
        }
    };
    if purge {
        purge_in_background(parts, job);
    } else {
        note_writer::queue(parts, &job.place, name);
        tracing::info!(job = name, "job deleted; its images remain");
    }
    Ok(!purge)
}

/// Forgets a job whose record cannot be read. Which images are its own is not known, so they stay.
fn delete_unreadable(parts: &Arc<Parts>, name: &str, purge: bool) -> Refused<()> {
    let mut table = parts.table.lock();
    let Some(job) = table.unreadable().get(name).cloned() else {
        return Err(Refusal::no_job(name, table.jobs().keys()));
    };
    if purge {
        return Err(Refusal::unreadable(job.warning()));
    }
    if table.is_closing() {
        return Err(Refusal::shutting_down());
    }
    table.remove(name)?;
    drop(table);
    if let Some(store) = &job.store {
        note_writer::queue_in(parts, store, name);
    }
    tracing::warn!(
        job = name,
        "job is deleted, and its record could not be read; its images stay"
    );
    Ok(())
}

/// No source deletes what is on a target: that is what a target is for.
fn refuse_on_target(job: &JobRecord) -> Refused<()> {
    let Some(target) = job.place.target() else {
        return Ok(());
    };
    Err(Refusal::invalid(format!(
        "the images of job {} are on target {target}, where no source can delete them: delete the job without purge, and the \
         images there, with `smc-image rm`",
        job.name
    )))
}

/// Refuses to delete images of which one is in use.
fn ask_whether_in_use(stores: &Arc<Stores>, job: &JobRecord) -> Refused<()> {
    let Some(store) = job.place.store() else {
        return Ok(());
    };
    let (shared, seen) = (stores.clone(), job.clone());
    let looked = stores.run(store, move || Ok(refuse_in_use(&shared, &seen)));
    let looked = looked.wait(ACTION_PATIENCE);
    looked.map_err(|error| Refusal::conflict(error.full_message()))?
}

/// Deletes the images of a job that is Deleting, unless that is being done.
pub fn purge_in_background(parts: &Arc<Parts>, job: JobRecord) {
    parts.in_background(Task::Delete(job.name.clone()), move |parts| purge(parts, &job));
}

/// Discards what an unfinished sync of the job stored, where nobody is to wait for the store.
pub fn discard_in_background(parts: &Arc<Parts>, job: JobRecord) {
    parts.in_background(Task::Discard(job.name.clone()), move |parts| {
        discard(parts, &job);
    });
}

/// Deletes the images of a job, and then the job; what is in the way is told, and tried again later.
fn purge(parts: &Arc<Parts>, job: &JobRecord) {
    let name = &job.name;
    // Whoever asked may have looked some time ago.
    if !is_still_deleting(&parts.table.lock(), job) {
        return;
    }
    match purge_images(parts, job) {
        Ok(count) => {
            {
                let mut table = parts.table.lock();
                if !is_still_deleting(&table, job) {
                    return;
                }
                if let Err(error) = table.remove(name) {
                    return tracing::error!(job = name, "{error}");
                }
            }
            note_writer::queue(parts, &job.place, name);
            tracing::info!(job = name, images = count, "job and images deleted");
        }
        Err(error) => {
            tracing::warn!(
                job = name,
                "not all of its images are deleted yet: {}",
                error.full_message()
            );
            let mut table = parts.table.lock();
            if !is_still_deleting(&table, job) {
                return;
            }
            let saved = table.update(name, |job| {
                job.error = Some(format!("{}; smcd tries again every minute", error.full_message()));
                Ok(None)
            });
            if let Err(error) = saved {
                tracing::error!(job = name, "{error}");
            }
        }
    }
}

/// Deletes every image of a job; returns how many.
fn purge_images(parts: &Parts, job: &JobRecord) -> imagefmt::Result<usize> {
    let Some(store) = job.place.store() else {
        return Ok(0);
    };
    // A store that is not mounted has not been purged.
    let store = parts.stores.get(store)?;
    owners::check_owner(&parts.table, &parts.machine, &store, job)?;
    discard_unfinished(&store, job)?;
    let Some(images) = store.images_of(&job.name)? else {
        return Ok(0);
    };
    for image in images.ids() {
        match store.delete(&image) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(images.sequences().len())
}

/// Drops what a sync of the job stored that did not become an image.
pub fn discard(parts: &Parts, job: &JobRecord) {
    if let Some(target) = job.place.target() {
        return discard_on_target(parts, job, target);
    }
    let dropped = store_of(&parts.stores, job).and_then(|store| match store {
        Some(store) => {
            owners::check_owner(&parts.table, &parts.machine, &store, job)?;
            discard_unfinished(&store, job)
        }
        None => Ok(()),
    });
    if let Err(error) = dropped {
        tracing::warn!(
            job = job.name,
            "what its last sync stored is kept until `smc-image gc` removes it: {}",
            error.full_message()
        );
    }
}

/// The same on a target, which need not answer: the next sync of a job of this name resumes what stays there.
fn discard_on_target(parts: &Parts, job: &JobRecord, target: &str) {
    let directory = parts.config.targets();
    let dropped = TargetFiles::open(&directory, target).and_then(|files| remote::discard(&files, &job.name));
    if let Err(error) = dropped {
        tracing::warn!(
            job = job.name,
            "what its last sync sent is kept on target {target} until `smc-image gc` there removes it: {}",
            error.full_message()
        );
    }
}

/// Discards what an unfinished sync of the job has stored, if there is one.
fn discard_unfinished(store: &Store, job: &JobRecord) -> imagefmt::Result<()> {
    match store.discard_unfinished(&job.name) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The job's store; nothing if it has none, or it is no store any more.
fn store_of(stores: &Stores, job: &JobRecord) -> imagefmt::Result<Option<Arc<Store>>> {
    let Some(store) = job.place.store() else {
        return Ok(None);
    };
    match stores.get(store) {
        Ok(store) => Ok(Some(store)),
        Err(error) if error.kind() == ErrorKind::NotAStore => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether it is this job that is to go, and not a later one of its name.
fn is_still_deleting(table: &Locked<'_>, job: &JobRecord) -> bool {
    let known = table.jobs().get(&job.name);
    known.is_some_and(|known| known.status == Status::Deleting && known.created == job.created)
}

/// Refuses to delete images that the first sync of another job is to build on.
fn refuse_needed(table: &Locked<'_>, job: &JobRecord) -> Refused<()> {
    let waits = |successor: &&JobRecord| {
        successor.take_up.as_ref() == Some(&job.name)
            && successor.name != job.name
            && successor.place == job.place
            && successor.status.is_unfinished()
            && !successor.synced
    };
    let may_wait = |other: &&Unreadable| other.take_up.as_ref() == Some(&job.name);
    if let Some(other) = table.unreadable().values().find(may_wait) {
        return Err(Refusal::unreadable(other.warning()));
    }
    match table.jobs().values().find(waits) {
        None => Ok(()),
        Some(successor) => Err(Refusal::conflict(format!(
            "the first sync of job {} needs an image of job {}: purge it when that sync is done, or delete \
             job {} first",
            successor.name, job.name, successor.name
        ))),
    }
}

/// Refuses to delete images of which one is in use.
fn refuse_in_use(stores: &Stores, job: &JobRecord) -> Refused<()> {
    let failed = |error: imagefmt::Error| Refusal::failed(&error.into());
    let Some(store) = store_of(stores, job).map_err(failed)? else {
        return Ok(());
    };
    let images = store.images_of(&job.name).map_err(failed)?;
    for image in images.iter().flat_map(JobImages::ids) {
        let holders = store.held_by(&image);
        if !holders.is_empty() {
            return Err(Refusal::conflict(format!(
                "image {image} is in use by {}: images can be deleted when nothing uses them",
                holders.join(", ")
            )));
        }
        let pins = store.pins(&image).map_err(failed)?;
        if let Some(pin) = pins.first() {
            return Err(Refusal::conflict(format!(
                "image {image} is pinned ({}): run `smc-image unpin {image}` first",
                pin.name
            )));
        }
    }
    Ok(())
}
