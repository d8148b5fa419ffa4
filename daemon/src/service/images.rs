//! Which images jobs have: their stores know, and jobs remember it, so that views need not ask.

use super::background::Task;
use super::parts::Parts;
use super::table::JobTable;
use crate::engine::Place;
use crate::job::JobRecord;
use crate::stores::Stores;
use api::Status;
use imagefmt::{Manifest, Store};
use remote::TargetFiles;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Asks every store, in the background, which images its jobs have: others delete images too.
pub fn refresh_images(parts: &Arc<Parts>) {
    let stores: BTreeSet<PathBuf> = {
        let table = parts.table.lock();
        let of_jobs = table.jobs().values().filter_map(|job| job.place.store());
        of_jobs.map(Path::to_owned).collect()
    };
    for path in stores {
        parts.in_background(Task::Refresh(path.clone()), move |parts| {
            refresh(&parts.table, &parts.stores, &path)
        });
    }
}

fn refresh(table: &JobTable, stores: &Arc<Stores>, path: &Path) {
    let jobs: Vec<JobRecord> = {
        let table = table.lock();
        let of_store = |job: &&JobRecord| job.place.store() == Some(path) && job.status != Status::Running;
        table.jobs().values().filter(of_store).cloned().collect()
    };
    let store = match stores.get(path) {
        Ok(store) => store,
        // Its jobs say so when they sync.
        Err(error) => return tracing::debug!("{}", error.full_message()),
    };
    for job in jobs {
        match sequences(&store, &job.name) {
            Ok(images) => remember_images(table, &job, images),
            Err(error) => tracing::debug!(job = job.name, "{}", error.full_message()),
        }
    }
}

/// A sync that has begun since `seen` was looked at knows better.
fn remember_images(table: &JobTable, seen: &JobRecord, images: Vec<u64>) {
    let mut table = table.lock();
    let is_the_same = table.jobs().get(&seen.name).is_some_and(|job| {
        job.created == seen.created && job.runs == seen.runs && job.status != Status::Running
    });
    if !is_the_same {
        return;
    }
    let saved = table.update(&seen.name, |job| {
        job.images = images;
        Ok(None)
    });
    if let Err(error) = saved {
        tracing::warn!(job = seen.name, "{error}");
    }
}

/// The image that an interrupted run made, if it came so far. Waits for the job's store. A target that does not answer is not
/// waited for: the sync that resumes the run does that, and makes another image if this one was made already.
///
/// # Errors
/// When the store cannot be read.
pub fn image_made_by_run(parts: &Parts, job: &JobRecord) -> imagefmt::Result<Option<Manifest>> {
    let Some(sequence) = job.run.as_ref().and_then(|run| run.image) else {
        return Ok(None);
    };
    match &job.place {
        Place::Store(store) => image_of(&*parts.stores.get(store)?, job),
        Place::Target(target) => {
            let directory = parts.config.targets();
            let made =
                TargetFiles::open(&directory, target).and_then(|files| image_on(&files, job, sequence));
            Ok(made.unwrap_or_else(|error| {
                tracing::warn!(
                    job = job.name,
                    "whether its last image was made is not known: {}",
                    error.full_message()
                );
                None
            }))
        }
    }
}

/// An image of a job on a target, if it is the newest one there.
fn image_on(files: &TargetFiles, job: &JobRecord, sequence: u64) -> remote::Result<Option<Manifest>> {
    // Of an unfinished sync, the target has a record too.
    if !remote::images(files, &job.name)?.contains(&sequence) {
        return Ok(None);
    }
    let newest = remote::newest(files, &job.name)?;
    Ok(newest.filter(|newest| newest.sequence == sequence))
}

/// Numbers of a job's images, ascending; none where the store has no such job.
///
/// # Errors
/// When the store cannot be read.
pub fn sequences(store: &Store, job: &str) -> imagefmt::Result<Vec<u64>> {
    let images = store.images_of(job)?;
    Ok(images
        .map(|images| images.sequences().to_vec())
        .unwrap_or_default())
}

/// The image that an interrupted run made, if it came so far.
///
/// # Errors
/// When the store cannot be read.
pub fn image_of(store: &Store, job: &JobRecord) -> imagefmt::Result<Option<Manifest>> {
    let Some(sequence) = job.run.as_ref().and_then(|run| run.image) else {
        return Ok(None);
    };
    let images = store.images_of(&job.name)?;
    let image = images.and_then(|images| images.get(sequence));
    image
        .map(|image| store.manifest(&image).map(Arc::unwrap_or_clone))
        .transpose()
}
