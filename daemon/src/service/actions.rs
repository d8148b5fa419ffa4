//! What people ask of jobs that exist.

use super::deleting;
use super::images::image_of;
use super::note_writer;
use super::outcome::finish;
use super::parts::Parts;
use super::runner;
use super::table::JobTable;
use super::tracking;
use crate::job::{self, Ending, JobRecord, Refusal, Refused};
use crate::priority;
use crate::stores::ACTION_PATIENCE;
use crate::stores::Stores;
use api::{Action, CompleteJob, ModifyJob, RunType, Status};
use imagefmt::Manifest;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Begins a job, or goes on after a stop or an error.
///
/// # Errors
/// When the job's state does not allow it, or it cannot be saved.
pub fn start(parts: &Arc<Parts>, name: &str) -> Refused<()> {
    begin(parts, name, Action::Start, RunType::Manual, |_| ())
}

/// An incremental sync now.
///
/// # Errors
/// As [`start`].
pub fn sync(parts: &Arc<Parts>, name: &str) -> Refused<()> {
    begin(parts, name, Action::Sync, RunType::Manual, |_| ())
}

/// What the schedule does, with the same rules as what people ask for.
///
/// # Errors
/// As [`start`].
pub fn begin_by_schedule(parts: &Arc<Parts>, name: &str, action: Action) -> Refused<()> {
    begin(parts, name, action, RunType::Schedule, |_| ())
}

fn begin(
    parts: &Arc<Parts>,
    name: &str,
    action: Action,
    run_type: RunType,
    change: impl FnOnce(&mut JobRecord),
) -> Refused<()> {
    let made = made_before(&parts.table, &parts.stores, name, action);
    let mut table = parts.table.lock();
    let job = parts.job_for(&table, name, action)?;
    let of_run = job.run.as_ref().and_then(|run| run.image);
    let launched = match made.filter(|made| Some(made.sequence) == of_run) {
        Some(manifest) => runner::conclude_late(parts, &mut table, name, manifest),
        None => runner::launch(parts, &mut table, name, run_type, change),
    };
    launched.map_err(|error| Refusal::failed(&error))?;
    note_writer::queue(parts, &job.place, name);
    Ok(())
}

/// The image that an interrupted run had made while its store could not be read: `start` need not make it again.
/// The store is asked without the mutex.
fn made_before(table: &JobTable, stores: &Arc<Stores>, name: &str, action: Action) -> Option<Manifest> {
    if action != Action::Start {
        return None;
    }
    let job = table.job(name).ok()?;
    job.run.as_ref()?.image?;
    // A sync to a target looks itself what is there.
    let path = job.place.store()?.to_owned();
    let asked = stores.begin(&path, move |store| image_of(store, &job));
    // A store that cannot be read fails the sync, which says so.
    asked.wait(ACTION_PATIENCE).ok().flatten()
}

/// Finishes a job, after a last sync if asked for.
///
/// # Errors
/// As [`start`].
pub fn complete(parts: &Arc<Parts>, name: &str, request: &CompleteJob) -> Refused<()> {
    if request.verify
        && let Some(target) = parts.table.job(name)?.place.target()
    {
        return Err(Refusal::invalid(format!(
            "verify reads the image, which is on target {target}: complete the job without it, and run `smc-image verify` there"
        )));
    }
    if request.last_sync {
        return begin(parts, name, Action::Complete, RunType::Manual, |job| {
            job.completing = true;
            job.verifying = request.verify;
        });
    }
    if request.verify {
        return Err(Refusal::invalid(
            "verify compares the disks with the image of a last sync: it needs last_sync",
        ));
    }
    change(parts, name, Action::Complete, |job| {
        finish(job);
        tracing::info!(job = job.name, "job is finished");
    })
}

/// Root has looked at a job that was found in a store: it is to be trusted.
///
/// # Errors
/// When the job's state does not allow it, or it cannot be saved.
pub fn confirm(parts: &Arc<Parts>, name: &str) -> Refused<()> {
    change(parts, name, Action::Confirm, |job| {
        job.unconfirmed = false;
        tracing::info!(job = job.name, "job is confirmed");
    })
}

/// Stops syncing. A sync that runs keeps what it has stored, and is over some time after this.
///
/// # Errors
/// As [`start`].
pub fn stop(parts: &Arc<Parts>, name: &str) -> Refused<()> {
    if end_run(parts, name, Action::Stop, Ending::Stop)? {
        return Ok(());
    }
    change(parts, name, Action::Stop, |job| {
        job.status = Status::Stopped;
        job.next_sync = None;
    })
}

/// Gives a job up. What a sync stored that did not become an image is dropped.
///
/// # Errors
/// As [`start`].
pub fn cancel(parts: &Arc<Parts>, name: &str) -> Refused<()> {
    if end_run(parts, name, Action::Cancel, Ending::Cancel)? {
        return Ok(());
    }
    change(parts, name, Action::Cancel, |job| {
        job.status = Status::Canceled;
        job.next_sync = None;
    })?;
    let job = parts.table.job(name)?;
    discard(parts, job);
    Ok(())
}

/// Drops what an unfinished sync has stored. A store is waited for a moment, a target is not.
fn discard(parts: &Arc<Parts>, job: JobRecord) {
    let Some(path) = job.place.store().map(Path::to_owned) else {
        return deleting::discard_in_background(parts, job);
    };
    let (shared, name) = (parts.clone(), job.name.clone());
    let discarded = parts.stores.run(&path, move || {
        deleting::discard(&shared, &job);
        Ok(())
    });
    if let Err(error) = discarded.wait(ACTION_PATIENCE) {
        tracing::warn!(
            job = name,
            "what its last sync stored is not discarded yet: {}",
            error.full_message()
        );
    }
}

/// Asks a running sync to end; says whether there was one.
fn end_run(parts: &Parts, name: &str, action: Action, ending: Ending) -> Refused<bool> {
    let mut table = parts.table.lock();
    parts.job_for(&table, name, action)?;
    if !parts.live.contains(name) {
        return Ok(false);
    }
    // Saved before it is answered: it counts after a kill too.
    table.update(name, |job| {
        if let Some(run) = &mut job.run {
            run.ending = Some(ending);
        }
        Ok(None)
    })?;
    parts.live.ask(name, ending);
    tracing::info!(job = name, "the running sync is ending: {}", ending.label());
    Ok(true)
}

/// Changes a job that no sync of runs.
fn change(
    parts: &Arc<Parts>,
    name: &str,
    action: Action,
    change: impl FnOnce(&mut JobRecord),
) -> Refused<()> {
    let mut table = parts.table.lock();
    parts.job_for(&table, name, action)?;
    if parts.live.contains(name) {
        return Err(Refusal::conflict(format!(
            "a sync of job {name} has just started: repeat the request"
        )));
    }
    let job = table.update(name, |job| {
        change(job);
        Ok(None)
    })?;
    drop(table);
    tracking::release_in_background(parts, name);
    note_writer::queue(parts, &job.place, name);
    Ok(())
}

/// Changes parameters; a new bandwidth limit or I/O priority reaches a sync that runs.
///
/// # Errors
/// When there is no such job, its state does not allow a change, a value is out of range, or it cannot be saved:
/// nothing has changed then.
pub fn modify(parts: &Arc<Parts>, name: &str, change: &ModifyJob) -> Refused<()> {
    // Whether the machine can track is found out without the table.
    let known = parts.table.job(name)?;
    if change.interval_seconds.is_some() {
        let as_it_will_be = job::modify(&known, change, &parts.config, &parts.now())?;
        tracking::check_intervals(parts, &as_it_will_be)?;
    }
    let mut table = parts.table.lock();
    table.job(name)?;
    if table.is_closing() {
        return Err(Refusal::shutting_down());
    }
    let changed = table.update(name, |job| {
        *job = job::modify(job, change, &parts.config, &parts.now())?;
        Ok(None)
    })?;
    drop(table);
    tracking::release_in_background(parts, name);
    if let Some((live, _)) = parts.live.get(name) {
        let pace = live.control.pace();
        pace.set_limit(changed.bandwidth_limit_bytes);
        live.send_rate.set(changed.send_limit());
        pace.set_priority(priority::of_reads(changed.io_priority));
    }
    note_writer::queue(parts, &changed.place, name);
    Ok(())
}

/// Lets nothing begin any more, and asks what runs to keep what it has stored. What follows a sync that ends, its post
/// hooks above all, has a little less time than the daemon.
pub fn close(parts: &Parts) {
    let mut table = parts.table.lock();
    table.close(Instant::now() + parts.config.stop_timeout.mul_f32(0.9));
    parts.live.ask_all(Ending::Shutdown);
}

/// How many syncs still run.
pub fn running(parts: &Parts) -> usize {
    parts.live.all().len()
}
