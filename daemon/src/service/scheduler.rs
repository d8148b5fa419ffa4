//! What happens by itself: starts, syncs, expiries, and what was left for later.
//!
//! The scheduler looks at all jobs again and again instead of setting timers: so a suspend, a clock that is set and a
//! restart are nothing special. A job that is due several intervals late is due once.

use super::actions;
use super::background::Task;
use super::checks;
use super::deleting;
use super::images;
use super::looking;
use super::note_writer;
use super::outcome;
use super::owed;
use super::owners;
use super::parts::Parts;
use super::resume;
use super::tracking;
use crate::clock::{Deadline, Moment};
use crate::engine;
use crate::job::JobRecord;
use api::{Action, RunType, Status};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often is tried again what was in the way.
const RETRY: Duration = Duration::from_secs(60);

/// How often is written down how far deadlines are away.
const NOTE_EVERY: Duration = Duration::from_secs(600);

/// What a job is due for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Start,
    Sync,
    Expire,
}

/// The scheduler's own memory.
#[derive(Debug, Default)]
pub struct Scheduler {
    retry: Option<Deadline>,
    noted: Option<Deadline>,
    /// Jobs that could not do what they were due for, and when they may try again.
    held: BTreeMap<String, Deadline>,
    /// Stores that did not answer when it last looked.
    silent: BTreeSet<PathBuf>,
}

impl Scheduler {
    /// Looks at all jobs once.
    pub fn tick(&mut self, parts: &Arc<Parts>) {
        let now = parts.now();
        let jobs: Vec<JobRecord> = {
            let table = parts.table.lock();
            if table.is_closing() {
                return;
            }
            table.jobs().values().cloned().collect()
        };
        parts.live.all().iter().for_each(|run| run.sample());
        self.log_silence(parts);
        for job in &jobs {
            let held = self.held.get(&job.name).is_some_and(|until| !until.is_due(&now));
            if let Some(due) = due(job, &now).filter(|_| !held) {
                self.act(parts, job, due, &now);
            }
        }
        checks::begin_due(parts, &jobs);
        if self.retry.as_ref().is_none_or(|retry| retry.is_due(&now)) {
            self.retry = Some(Deadline::after(&now, RETRY));
            if let Err(error) = parts.table.lock().write_again() {
                tracing::warn!("{error:#}");
            }
            jobs.iter().for_each(|job| retry(parts, job));
            images::refresh_images(parts);
            looking::look_for_jobs(parts);
            tracking::look_in_background(parts);
            parts.stores.close_idle();
        }
        if self.noted.as_ref().is_none_or(|noted| noted.is_due(&now)) {
            self.noted = Some(Deadline::after(&now, NOTE_EVERY));
            jobs.iter().for_each(|job| note_deadlines(parts, job));
        }
    }

    /// Says in the log which stores do not answer any more, and which answer again.
    fn log_silence(&mut self, parts: &Parts) {
        let silent = parts.stores.silent();
        for store in silent.iter().filter(|store| !self.silent.contains(&store.path)) {
            tracing::warn!("{store}");
        }
        let now: BTreeSet<PathBuf> = silent.into_iter().map(|store| store.path).collect();
        for path in self.silent.difference(&now) {
            tracing::info!("store {} answers again", path.display());
        }
        self.silent = now;
    }

    fn act(&mut self, parts: &Arc<Parts>, job: &JobRecord, due: Due, now: &Moment) {
        let done = match due {
            Due::Start => actions::begin_by_schedule(parts, &job.name, Action::Start),
            Due::Sync => match tracking::check_early_scan(parts, job, RunType::Schedule) {
                Ok(()) => actions::begin_by_schedule(parts, &job.name, Action::Sync),
                Err(reason) => defer(parts, &job.name, &reason),
            },
            Due::Expire => expire(parts, &job.name),
        };
        self.held.remove(&job.name);
        if let Err(refusal) = done {
            // Somebody was faster, or the state cannot be written: it is due again some time later.
            tracing::warn!(job = job.name, "{due:?} is due but was refused: {refusal}");
            self.held.insert(job.name.clone(), Deadline::after(now, RETRY));
        }
    }
}

/// What a job is due for now. A running sync is left alone whatever the time.
fn due(job: &JobRecord, now: &Moment) -> Option<Due> {
    if job.status.is_unfinished() && job.status != Status::Running && job.expires.is_due(now) {
        return Some(Due::Expire);
    }
    match job.status {
        Status::Ready if job.start_at.is_some_and(|at| at <= now.wall) => Some(Due::Start),
        Status::Waiting if job.next_sync.as_ref().is_some_and(|next| next.is_due(now)) => Some(Due::Sync),
        _ => None,
    }
}

/// A sync that would read a whole disk too soon does not begin, and is due again when it may.
fn defer(parts: &Arc<Parts>, name: &str, reason: &str) -> crate::job::Refused<()> {
    let now = parts.now();
    let mut table = parts.table.lock();
    if due(table.job(name)?, &now) != Some(Due::Sync) || parts.live.contains(name) {
        return Ok(());
    }
    let job = table.update(name, |job| {
        outcome::defer_scan(job, &now, reason);
        Ok(None)
    })?;
    drop(table);
    tracing::warn!(job = name, "sync deferred: {reason}");
    note_writer::queue(parts, &job.place, name);
    Ok(())
}

/// The job's valid time has passed.
fn expire(parts: &Arc<Parts>, name: &str) -> crate::job::Refused<()> {
    let mut table = parts.table.lock();
    let job = table.job(name)?;
    if due(job, &parts.now()) != Some(Due::Expire) || parts.live.contains(name) {
        return Ok(());
    }
    let job = table.update(name, |job| {
        job.status = Status::Expired;
        job.next_sync = None;
        Ok(None)
    })?;
    tracing::warn!(job = name, "job expired; its images remain");
    drop(table);
    tracking::release_in_background(parts, name);
    note_writer::queue(parts, &job.place, name);
    Ok(())
}

/// Tries again what was in the way: images in use that are too many, and jobs being deleted.
fn retry(parts: &Arc<Parts>, job: &JobRecord) {
    if job.status != Status::Running {
        owed::release_in_background(parts, job);
        tracking::release_in_background(parts, &job.name);
    }
    match job.status {
        Status::Deleting => deleting::purge_in_background(parts, job.clone()),
        // One that could not be resumed when the daemon started.
        Status::Running => resume::resume_in_background(parts, &job.name),
        _ if job.retention_pending => retain_in_background(parts, job.clone()),
        _ => {}
    }
}

/// Writes down how far deadlines are away: across a reboot, that is believed more than a wall clock that was set.
fn note_deadlines(parts: &Parts, job: &JobRecord) {
    let now = parts.now();
    if !job.status.is_unfinished() {
        return;
    }
    let saved = parts.table.update(&job.name, |job| {
        job.expires = job.expires.noted(&now);
        job.next_sync = job.next_sync.as_ref().map(|next| next.noted(&now));
        job.scan_from = job.scan_from.as_ref().map(|from| from.noted(&now));
        Ok(None)
    });
    if let Err(error) = saved {
        tracing::warn!(job = job.name, "{error}");
    }
}

fn retain_in_background(parts: &Arc<Parts>, job: JobRecord) {
    parts.in_background(Task::Delete(job.name.clone()), move |parts| {
        retain_again(parts, &job);
    });
}

fn retain_again(parts: &Parts, job: &JobRecord) {
    let max = job.schedule.and_then(|schedule| schedule.max_images);
    let (Some(max), Some(store)) = (max, job.place.store()) else {
        return;
    };
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let store = parts.stores.get(store);
    let retained = store.and_then(|store| {
        owners::check_owner(&parts.table, &parts.machine, &store, job)?;
        let retained = engine::retain(&store, &job.name, max)?;
        Ok((retained, images::sequences(&store, &job.name)?))
    });
    let (retained, images) = match retained {
        Ok((retained, images)) if !retained.in_use => (retained, images),
        Ok(_) => return,
        Err(error) => {
            return tracing::warn!(
                job = job.name,
                "earlier images could not be deleted: {}",
                error.full_message()
            );
        }
    };
    for gone in &retained.deleted {
        tracing::info!(
            job = job.name,
            image = gone.image,
            "image is no longer in use and was deleted"
        );
    }
    let saved = parts.table.update(&job.name, |job| {
        job.retention_pending = false;
        job.images = images;
        job.warnings = retained.warnings;
        Ok(None)
    });
    if let Err(error) = saved {
        tracing::error!(job = job.name, "{error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, HandClock};
    use crate::config::Config;
    use crate::engine::Place;
    use crate::job::{ResolvedInput, new_record};

    const HOUR: Duration = Duration::from_secs(3600);

    fn job(status: Status, clock: &HandClock) -> JobRecord {
        let request = api::CreateJob {
            name: "web01".to_owned(),
            automatic_incremental: true,
            interval_seconds: Some(6 * 3600),
            max_images: Some(3),
            ..Default::default()
        };
        let given = ResolvedInput {
            place: Place::Store("/s".into()),
            disks: Vec::new(),
        };
        let mut job = new_record(&request, given, &Config::load(None).unwrap(), &clock.now()).unwrap();
        job.status = status;
        job.next_sync = (status == Status::Waiting).then(|| Deadline::after(&clock.now(), 6 * HOUR));
        job
    }

    #[test]
    fn a_waiting_job_is_due_after_its_interval_and_no_other_job_is() {
        for status in Status::ALL {
            let clock = HandClock::new();
            let job = job(status, &clock);
            assert_eq!(due(&job, &clock.now()), None, "{status}");
            clock.pass(6 * HOUR);
            let expected = (status == Status::Waiting).then_some(Due::Sync);
            assert_eq!(due(&job, &clock.now()), expected, "{status}");
        }
    }

    #[test]
    fn a_wall_clock_that_jumps_makes_nothing_due_and_puts_nothing_off() {
        for jump in [366 * 86400, -366 * 86400] {
            let clock = HandClock::new();
            let job = job(Status::Waiting, &clock);
            clock.set_wall(jump);
            assert_eq!(due(&job, &clock.now()), None);
            clock.pass(6 * HOUR);
            assert_eq!(due(&job, &clock.now()), Some(Due::Sync));
        }
    }

    #[test]
    fn a_start_at_is_by_the_wall_clock() {
        let clock = HandClock::new();
        let mut job = job(Status::Ready, &clock);
        job.start_at = Some(crate::clock::later(clock.now().wall, 7200));
        clock.pass(HOUR);
        assert_eq!(due(&job, &clock.now()), None);
        clock.pass(HOUR);
        assert_eq!(due(&job, &clock.now()), Some(Due::Start));
    }

    #[test]
    fn an_unfinished_job_expires_unless_it_runs() {
        for status in Status::ALL {
            let clock = HandClock::new();
            let job = job(status, &clock);
            clock.pass(30 * 24 * HOUR);
            let expires = status.is_unfinished() && status != Status::Running;
            assert_eq!(
                due(&job, &clock.now()),
                expires.then_some(Due::Expire),
                "{status}"
            );
        }
    }

    #[test]
    fn a_reboot_that_took_days_leads_to_one_sync() {
        let clock = HandClock::new();
        let job = job(Status::Waiting, &clock);
        clock.reboot(72 * HOUR);
        assert_eq!(due(&job, &clock.now()), Some(Due::Sync));
    }
}
