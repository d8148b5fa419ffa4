//! What a run's end makes of its job.

use super::live::run_begun;
use super::table::Locked;
use crate::clock::{Deadline, Moment};
use crate::job::{Ending, JobRecord, Refused};
use api::{RunOutcome, RunView, Status};
use imagefmt::Manifest;
use std::time::Duration;

/// How long a sync is deferred if another process has locked its chain.
const PUT_OFF: Duration = Duration::from_secs(60);

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With an image. A stop or cancel that came too late to prevent it is kept to all the same.
    Image(Option<Ending>),
    /// Without one, as it was asked to.
    Asked(Ending),
    /// Without one, for this reason.
    Failed(String),
    /// Without one, since somebody else holds the chain: it is tried again soon.
    Deferred(String),
    /// Without one, since it would have read a whole disk too soon after the last time: it is tried again then.
    TooEarly(String),
}

impl Ended {
    /// As the run's history tells it.
    pub fn outcome(&self) -> RunOutcome {
        match self {
            Self::Image(_) => RunOutcome::Succeeded,
            Self::Asked(Ending::Stop) => RunOutcome::Stopped,
            Self::Asked(Ending::Cancel) => RunOutcome::Canceled,
            Self::Asked(Ending::Shutdown) => RunOutcome::Interrupted,
            Self::Failed(_) => RunOutcome::Failed,
            Self::Deferred(_) | Self::TooEarly(_) => RunOutcome::Deferred,
        }
    }
}

/// The job after a run.
pub fn conclude(mut job: JobRecord, ended: &Ended, now: &Moment) -> JobRecord {
    if matches!(ended, Ended::Asked(Ending::Shutdown)) {
        // As if the daemon had been killed: it goes on when it starts again.
        return job;
    }
    job.run = None;
    job.next_sync = None;
    job.deferred = None;
    match ended {
        Ended::Image(Some(Ending::Cancel)) | Ended::Asked(Ending::Cancel) => job.status = Status::Canceled,
        Ended::Image(Some(Ending::Stop)) | Ended::Asked(_) => {
            job.status = Status::Stopped;
            job.completing = false;
            job.verifying = false;
        }
        Ended::Image(_) => after_image(&mut job, now),
        Ended::Deferred(reason) => defer(&mut job, Deadline::after(now, PUT_OFF), reason),
        Ended::TooEarly(reason) => defer_scan(&mut job, now, reason),
        Ended::Failed(reason) => {
            job.status = Status::InError;
            job.error = Some(reason.clone());
        }
    }
    job
}

/// The next sync waits until it may read a whole disk again.
pub fn defer_scan(job: &mut JobRecord, now: &Moment, reason: &str) {
    let soon = || Deadline::after(now, PUT_OFF);
    let until = job.scan_from.clone().unwrap_or_else(soon);
    defer(job, until, reason);
}

fn defer(job: &mut JobRecord, until: Deadline, reason: &str) {
    job.status = Status::Waiting;
    job.next_sync = Some(until);
    job.deferred = Some(reason.to_owned());
}

fn after_image(job: &mut JobRecord, now: &Moment) {
    match job.schedule {
        Some(schedule) if !job.completing => {
            job.status = Status::Waiting;
            let interval = Duration::from_secs(schedule.interval_seconds);
            job.next_sync = Some(Deadline::after(now, interval));
        }
        _ => finish(job),
    }
}

/// No more syncs.
pub fn finish(job: &mut JobRecord) {
    job.status = Status::Finished;
    job.completing = false;
    job.verifying = false;
    job.next_sync = None;
    job.pending = api::PendingView::default();
}

/// What a run has to do.
#[derive(Debug)]
pub enum Work {
    /// All of it.
    Sync,
    /// The image is there, and the daemon ended before it was written down.
    Conclude(Box<Manifest>),
}

/// Saves what became of a run that has no thread; returns the job as it is then.
///
/// # Errors
/// When it cannot be saved.
pub fn interrupt(
    table: &mut Locked<'_>,
    name: &str,
    mut run: RunView,
    ended: &Ended,
    now: &Moment,
) -> Refused<JobRecord> {
    run.outcome = ended.outcome();
    run.finished = Some(now.wall);
    run.error = match ended {
        Ended::Failed(reason) => Some(reason.clone()),
        Ended::Asked(Ending::Shutdown) => {
            Some("smcd ended during the run; the next run resumed it".to_owned())
        }
        _ => None,
    };
    table.update(name, |job| {
        *job = conclude(job.clone(), ended, now);
        Ok(Some(run))
    })
}

/// The run as it was begun. One that cannot be read must not keep its job from going on.
pub fn unfinished_run(table: &Locked<'_>, job: &JobRecord) -> RunView {
    let number = job.run.as_ref().map_or(job.runs, |run| run.number);
    let run_type = job.run.as_ref().map_or(api::RunType::Manual, |run| run.run_type);
    let known = table.run(&job.name, number).unwrap_or_else(|error| {
        tracing::warn!(
            job = job.name,
            run = number,
            "the record of the run cannot be read: {error:#}"
        );
        None
    });
    known.unwrap_or_else(|| run_begun(number, run_type, job.created))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, HandClock};
    use crate::config::Config;
    use crate::engine::Place;
    use crate::job::{ResolvedInput, new_record};
    use api::CreateJob;

    fn running(automatic: bool, completing: bool, clock: &HandClock) -> JobRecord {
        let request = CreateJob {
            name: "web01".to_owned(),
            automatic_incremental: automatic,
            interval_seconds: automatic.then_some(3600),
            max_images: automatic.then_some(3),
            ..CreateJob::default()
        };
        let given = ResolvedInput {
            place: Place::Store("/s".into()),
            disks: Vec::new(),
        };
        let mut job = new_record(&request, given, &Config::load(None).unwrap(), &clock.now()).unwrap();
        job.status = Status::Running;
        job.completing = completing;
        job
    }

    #[test]
    fn every_end_of_a_run_leads_to_one_state() {
        use Ending::{Cancel, Shutdown, Stop};
        let failed = || Ended::Failed("no space".to_owned());
        let rows = [
            (true, false, Ended::Image(None), Status::Waiting),
            (true, true, Ended::Image(None), Status::Finished),
            (false, false, Ended::Image(None), Status::Finished),
            (true, true, Ended::Image(Some(Stop)), Status::Stopped),
            (true, false, Ended::Image(Some(Stop)), Status::Stopped),
            (true, false, Ended::Image(Some(Cancel)), Status::Canceled),
            (true, false, Ended::Image(Some(Shutdown)), Status::Waiting),
            (true, false, Ended::Asked(Stop), Status::Stopped),
            (true, false, Ended::Asked(Cancel), Status::Canceled),
            (true, false, Ended::Asked(Shutdown), Status::Running),
            (true, false, Ended::Deferred("gc".to_owned()), Status::Waiting),
            (true, false, Ended::TooEarly("x".to_owned()), Status::Waiting),
            (true, false, failed(), Status::InError),
            (false, false, failed(), Status::InError),
        ];
        let clock = HandClock::new();
        for (automatic, completing, ended, status) in rows {
            let job = conclude(running(automatic, completing, &clock), &ended, &clock.now());
            assert_eq!(job.status, status, "{ended:?}");
            assert_eq!(job.next_sync.is_some(), status == Status::Waiting, "{ended:?}");
            assert_eq!(job.error.is_some(), status == Status::InError, "{ended:?}");
        }
    }

    #[test]
    fn a_last_sync_that_failed_stays_the_last_one_and_one_that_was_stopped_does_not() {
        let clock = HandClock::new();
        let failed = conclude(
            running(true, true, &clock),
            &Ended::Failed("x".to_owned()),
            &clock.now(),
        );
        assert!(failed.completing);
        let stopped = conclude(
            running(true, true, &clock),
            &Ended::Asked(Ending::Stop),
            &clock.now(),
        );
        assert!(!stopped.completing);
    }

    #[test]
    fn the_interval_counts_from_the_end_of_the_sync() {
        let clock = HandClock::new();
        clock.pass(Duration::from_secs(500));
        let job = conclude(running(true, false, &clock), &Ended::Image(None), &clock.now());
        let next = job.next_sync.unwrap();
        assert_eq!(next.remaining(&clock.now()), Duration::from_secs(3600));
    }
}
