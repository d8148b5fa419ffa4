//! Starting: the state is opened, and every job is picked up where it was. No store is asked: what waits for one goes on
//! in the background.

use super::looking;
use super::note_writer;
use super::parts::Parts;
use super::resume;
use super::table::JobTable;
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::job::JobRecord;
use crate::state::{FoundJob, KnownStores, Opened, State, salvage};
use crate::stores::{Directories, Stores};
use anyhow::Result;
use api::Status;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens the state, or has it looked for in the stores, and resumes whatever was going on.
///
/// # Errors
/// When the state cannot be opened, read or written.
pub fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Parts>> {
    start_with(config, clock, Stores::new(Box::new(Directories)))
}

/// The same with stores that tests can make hang.
pub(super) fn start_with(config: Config, clock: Arc<dyn Clock>, stores: Arc<Stores>) -> Result<Arc<Parts>> {
    let now = clock.now();
    let (mut state, opened) = State::open(&config.state_dir)?;
    let mut warnings = Vec::new();
    match opened {
        Opened::Found => {}
        Opened::New => state.fill(&[], &all_stores(&config))?,
        Opened::Damaged(kept, why) => {
            let found = salvage(&kept).unwrap_or_else(|error| {
                tracing::warn!("no job can be read in the damaged state database: {error:#}");
                Vec::new()
            });
            warnings.push(damaged_notice(&kept, &why, &found));
            state.fill(&found, &all_stores(&config))?;
        }
    }
    let mut jobs = state.jobs()?;
    let elsewhere = state.is_of_another_host()?;
    for job in &mut jobs.readable {
        settle(&mut state, job, elsewhere, &now)?;
    }
    if elsewhere {
        warnings.push(
            "the state was written on another machine: its jobs are Stopped until you start them here"
                .to_owned(),
        );
        state.claim(&jobs.unreadable)?;
    }
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    for job in &jobs.unreadable {
        tracing::warn!(job = job.name, "{}", job.warning());
    }
    let known = KnownStores::open(&config.state_dir);
    let has_new_key = state.has_new_key();
    let table = JobTable::new(state, known, jobs, warnings);
    let parts = Arc::new(Parts::new(config, clock, stores, table));
    if has_new_key {
        // So that they are recognized if the state is lost.
        seal_notes(&parts);
    }
    looking::look_for_jobs(&parts);
    resume_all(&parts);
    Ok(parts)
}

fn damaged_notice(kept: &Path, why: &str, found: &[FoundJob]) -> String {
    let names: Vec<&str> = found.iter().map(|found| found.job.name.as_str()).collect();
    let read = if names.is_empty() {
        String::new()
    } else {
        format!(
            "; {} could be read in it, others are restored from their stores",
            names.join(", ")
        )
    };
    format!(
        "the state database was damaged ({why}) and was moved to {}{read}",
        kept.display()
    )
}

/// Where jobs may have kept their notes.
fn all_stores(config: &Config) -> BTreeSet<PathBuf> {
    std::iter::once(&config.store)
        .chain(&config.stores)
        .chain(KnownStores::open(&config.state_dir).all())
        .cloned()
        .collect()
}

/// Brings a job that was read into the present: its deadlines, and whose it is.
fn settle(state: &mut State, job: &mut JobRecord, elsewhere: bool, now: &Moment) -> Result<()> {
    let before = job.clone();
    anchor(job, now);
    // Its record may have been unreadable when the rest of the state became this machine's.
    let is_foreign = state.is_foreign(&job.name)?;
    if elsewhere || is_foreign {
        stop_foreign(job);
    }
    if *job != before
        && let Err(error) = state.save(job, None)
    {
        // A disk without room must not keep the schedule from going on.
        tracing::error!(job = job.name, "{error:#}");
        return Ok(());
    }
    if is_foreign {
        state.adopt(&job.name)?;
    }
    Ok(())
}

/// A job of another machine, or of this one before it was migrated, does nothing until somebody says so.
fn stop_foreign(job: &mut JobRecord) {
    // What its hooks have stopped is on the other machine.
    job.hooks_owed = None;
    job.thaw_owed = None;
    let acts = job.status == Status::Ready && job.start_at.is_some()
        || matches!(job.status, Status::Running | Status::Waiting);
    if acts {
        job.status = Status::Stopped;
        job.next_sync = None;
        job.start_at = None;
        job.run = None;
        job.warnings
            .push("this job was created on another machine: start it if it should continue here".to_owned());
    }
}

/// What was set by the clocks of an earlier boot goes by those of this one from now on.
fn anchor(job: &mut JobRecord, now: &Moment) {
    // The wall clock of a new boot may be wrong by years: it must not end a job for good.
    job.expires = job.expires.anchored_by_measure(now);
    job.next_sync = job.next_sync.as_ref().map(|next| next.anchored(now));
}

/// Writes all notes anew, in the background.
fn seal_notes(parts: &Arc<Parts>) {
    let jobs: Vec<JobRecord> = parts.table.lock().jobs().values().cloned().collect();
    for job in jobs {
        note_writer::queue(parts, &job.place, &job.name);
    }
}

/// Resumes what was going on when the daemon ended.
fn resume_all(parts: &Arc<Parts>) {
    let jobs: Vec<JobRecord> = parts.table.lock().jobs().values().cloned().collect();
    for job in jobs {
        resume::resume(parts, &job);
    }
}
