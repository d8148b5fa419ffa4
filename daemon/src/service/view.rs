//! What is told of jobs and of the daemon.

use super::forecast::{Next, forecast};
use super::images;
use super::parts::Parts;
use super::table::Locked;
use super::tracking;
use crate::clock::Moment;
use crate::job::{JobRecord, Refusal, Refused, unreachable_class};
use crate::priority;
use crate::state::{Runs, Unreadable};
use crate::stores::VIEW_PATIENCE;
use api::{
    DiskView, Event, ExportView, Forecast, HooksView, JobView, NextEvent, PendingView, RunView,
    ServiceStatus, Status, TrackerView,
};
use imagefmt::{JobImages, Store};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Runs looked at for a forecast.
const RUNS_SEEN: u32 = 10;

/// One job, as it is now. Its store is asked for the images, and waited for a moment: if it does not answer, the job has the
/// images that it had when it answered last, and a warning says so.
///
/// # Errors
/// When there is no such job.
pub fn show(parts: &Parts, name: &str) -> Refused<JobView> {
    let (mut view, job) = known(parts, name)?;
    if let Some((job, runs)) = job {
        let tracking = tracking::of_job(parts, &job);
        view.forecast = foretold(&job, &runs, Next::of(&tracking), &parts.now());
        for (disk, tracking) in view.disks.iter_mut().zip(tracking) {
            disk.tracking = tracking;
        }
        let disks = job
            .disks
            .iter()
            .map(|disk| (disk.name.as_str(), disk.path.as_path()));
        view.io_priority_note = priority::without_effect(job.io_priority, disks);
        show_images(parts, &job, &mut view);
    }
    Ok(view)
}

/// Asks a store for the images. A target has said after the last sync which there are.
fn show_images(parts: &Parts, job: &JobRecord, view: &mut JobView) {
    let Some(store) = job.place.store() else { return };
    let name = job.name.clone();
    let asked = parts
        .stores
        .begin(store, move |store| images::sequences(store, &name));
    match asked.wait(VIEW_PATIENCE) {
        Ok(found) => view.images = labels(&job.name, &found),
        Err(error) => view.warnings.push(format!(
            "the list of its images may be out of date, because they cannot be listed now: {}",
            error.full_message()
        )),
    }
}

/// A job that will sync again says how long the last sync would take.
fn foretold(job: &JobRecord, runs: &[RunView], next: Next, now: &Moment) -> Option<Forecast> {
    let is_unfinished = job.status.is_unfinished();
    is_unfinished.then(|| forecast(job, runs, next, now)).flatten()
}

/// A record, and the newest runs of its job.
type Known = (JobRecord, Vec<RunView>);

/// A job as far as the daemon knows it itself: no store is asked. A job whose record cannot be read has only a view.
fn known(parts: &Parts, name: &str) -> Refused<(JobView, Option<Known>)> {
    let (job, runs, live, write_warning) = {
        let table = parts.table.lock();
        if let Some(job) = table.unreadable().get(name) {
            return Ok((unreadable_view(job), None));
        }
        let job = table.job(name)?.clone();
        (
            job,
            newest_runs(&table, name, RUNS_SEEN),
            parts.live.get(name),
            table.write_warning(),
        )
    };
    let now = parts.now();
    let mut view = view(&job, &runs.readable, &now);
    view.warnings.extend(write_warning);
    view.warnings
        .extend(runs.unreadable.iter().map(|(number, reason)| {
            format!("the record of run {number} cannot be read and is left as it is: {reason}")
        }));
    if let Some((live, ending)) = live {
        let silence = job.place.store().and_then(|store| parts.stores.silence_of(store));
        let mut progress = live.progress();
        progress.held_up = silence.map(|store| store.to_string()).or(progress.held_up);
        view.progress = Some(progress);
        view.ending = ending.map(|ending| ending.label().to_owned());
        if let Some(ending) = ending {
            view.next.text = format!("this sync is ending ({})", ending.label());
        }
    }
    Ok((view, Some((job, runs.readable))))
}

/// All jobs, by name. No store is asked.
pub fn list(parts: &Parts) -> Vec<JobView> {
    let names: BTreeSet<String> = {
        let table = parts.table.lock();
        let names = table.jobs().keys().chain(table.unreadable().keys());
        names.cloned().collect()
    };
    // One that is deleted meanwhile is not in the list.
    names
        .iter()
        .filter_map(|name| Some(known(parts, name).ok()?.0))
        .collect()
}

/// The daemon.
pub fn status(parts: &Parts) -> ServiceStatus {
    let silent = parts.stores.silent();
    let silent = silent.iter().map(ToString::to_string);
    let table = parts.table.lock();
    let now = parts.now();
    let mut jobs: BTreeMap<String, usize> = BTreeMap::new();
    for job in table.jobs().values() {
        *jobs.entry(job.status.to_string()).or_default() += 1;
    }
    if !table.unreadable().is_empty() {
        jobs.insert("unreadable".to_owned(), table.unreadable().len());
    }
    let soonest = table
        .jobs()
        .values()
        .filter_map(|job| Some((job.next_sync.as_ref()?.remaining(&now), job)))
        .min_by_key(|(remaining, _)| *remaining);
    ServiceStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started: parts.started,
        config: parts.config.file.as_ref().map(|file| file.display().to_string()),
        store: parts.config.store.display().to_string(),
        jobs,
        next_sync: soonest.map(|(left, job)| format!("{} in {}", job.name, span(left))),
        warnings: table.warnings().into_iter().chain(silent).collect(),
    }
}

/// Every image of every known store that is in use.
pub fn exports(parts: &Parts) -> Vec<ExportView> {
    let stores: BTreeSet<PathBuf> = {
        let table = parts.table.lock();
        let of_jobs = table.jobs().values().filter_map(|job| job.place.store());
        of_jobs
            .map(Path::to_owned)
            .chain(table.stores().iter().cloned())
            .collect()
    };
    let asked: Vec<_> = stores
        .iter()
        .map(|path| (path, parts.stores.begin(path, in_use)))
        .collect();
    let begun = Instant::now();
    let mut found = Vec::new();
    for (path, question) in asked {
        match question.wait(VIEW_PATIENCE.saturating_sub(begun.elapsed())) {
            Ok(images) => found.extend(images),
            Err(error) => found.push(not_known("", &path.display(), error.full_message())),
        }
    }
    found
}

/// Runs of a job, newest first.
///
/// # Errors
/// When there is no such job, or the state cannot be read.
pub fn runs(parts: &Parts, name: &str, limit: u32) -> Refused<Vec<RunView>> {
    let table = parts.table.lock();
    table.job(name)?;
    let runs = table.runs(name, limit).map_err(|error| Refusal::failed(&error))?;
    for (number, reason) in &runs.unreadable {
        tracing::warn!(
            job = name,
            run = number,
            "the record of a run cannot be read: {reason}"
        );
    }
    Ok(runs.readable)
}

/// Numbers for metrics: each job with its progress and newest run.
pub fn measured(parts: &Parts) -> Vec<(JobRecord, Option<api::Progress>, Option<RunView>)> {
    let table = parts.table.lock();
    let measured = |job: &JobRecord| {
        let progress = parts.live.get(&job.name).map(|(live, _)| live.progress());
        let newest = newest_runs(&table, &job.name, 1).readable.pop();
        (job.clone(), progress, newest)
    };
    table.jobs().values().map(measured).collect()
}

/// The tracker as it was seen last, a minute ago at most; nothing is waited for.
pub fn tracker_seen(parts: &Parts) -> Option<TrackerView> {
    parts.tracker.last()
}

/// The newest runs of a job; none, and a line in the log, where the state cannot be read: the job is shown all the same.
fn newest_runs(table: &Locked<'_>, job: &str, limit: u32) -> Runs {
    table.runs(job, limit).unwrap_or_else(|error| {
        tracing::error!(job, "the runs of the job cannot be read: {error:#}");
        Runs::default()
    })
}

fn view(job: &JobRecord, runs: &[RunView], now: &Moment) -> JobView {
    let unfinished = job.status.is_unfinished();
    JobView {
        name: job.name.clone(),
        description: job.description.clone(),
        status: job.status,
        ending: None,
        completing: job.completing,
        verifying: job.verifying,
        error: job.error.clone(),
        warnings: job
            .warnings
            .iter()
            .map(String::as_str)
            .chain(job.checks.warnings())
            // A job of an earlier version may want what is refused now.
            .chain(unreachable_class(job.consistency, job.tracking).filter(|_| unfinished))
            .map(str::to_owned)
            .collect(),
        unconfirmed: job.unconfirmed,
        next: next_event(job, now),
        progress: None,
        forecast: foretold(job, runs, Next::AsLast, now),
        store: job.place.store().map(|store| store.display().to_string()),
        target: job.place.target().map(str::to_owned),
        disks: job.disk_views(),
        automatic_incremental: job.automatic_incremental,
        interval_seconds: job.schedule.map(|schedule| schedule.interval_seconds),
        max_images: job.schedule.and_then(|schedule| schedule.max_images),
        pending: job.pending.clone(),
        compress_level: job.compress_level,
        bandwidth_limit_bytes: job.bandwidth_limit_bytes,
        send_limit: job.send_limit.clone(),
        io_priority: job.io_priority,
        io_priority_note: None,
        cluster_size_bytes: job.cluster_size_bytes,
        tracking: job.tracking,
        min_scan_interval_seconds: job.min_scan_interval_seconds,
        checks: job.checks.view(job),
        accept_changed_disk: job.accept_changed_disk,
        on_read_error: job.on_read_error,
        consistency: job.consistency,
        require_consistency: job.require_consistency,
        freeze_budget_ms: job
            .freeze_budget()
            .and_then(|budget| u64::try_from(budget.as_millis()).ok()),
        take_over: job.take_over,
        hooks: job.hooks.clone(),
        take_up: job.take_up.clone(),
        created: job.created,
        start_at: job.start_at,
        valid_seconds: job.valid_seconds,
        expires: unfinished.then(|| job.expires.wall(now)),
        images: labels(&job.name, &job.images),
        last_run: runs.first().cloned(),
    }
}

/// A job whose record cannot be read, with what the record still shows: it is in error, and its disks are its own.
fn unreadable_view(job: &Unreadable) -> JobView {
    let disk = |path: &PathBuf| DiskView {
        name: String::new(),
        path: path.display().to_string(),
        size_bytes: 0,
        tracking: None,
    };
    JobView {
        name: job.name.clone(),
        description: String::new(),
        status: Status::InError,
        ending: None,
        completing: false,
        verifying: false,
        error: Some(job.warning()),
        warnings: Vec::new(),
        unconfirmed: false,
        next: nothing("nothing: its record cannot be read"),
        progress: None,
        forecast: None,
        store: job.store.as_ref().map(|store| store.display().to_string()),
        target: None,
        disks: job.disks.iter().map(disk).collect(),
        automatic_incremental: false,
        interval_seconds: None,
        max_images: None,
        pending: PendingView::default(),
        compress_level: 0,
        bandwidth_limit_bytes: 0,
        send_limit: None,
        io_priority: api::IoPriority::default(),
        io_priority_note: None,
        cluster_size_bytes: None,
        tracking: api::Tracking::default(),
        min_scan_interval_seconds: 0,
        checks: api::ChecksView::default(),
        accept_changed_disk: false,
        on_read_error: api::OnReadError::default(),
        consistency: api::LeastConsistency::default(),
        require_consistency: false,
        freeze_budget_ms: None,
        take_over: false,
        hooks: HooksView::default(),
        take_up: job.take_up.clone(),
        created: job.created.unwrap_or(Timestamp::UNIX_EPOCH),
        start_at: None,
        valid_seconds: 0,
        expires: None,
        images: Vec::new(),
        last_run: None,
    }
}

/// Images as people write them.
fn labels(job: &str, sequences: &[u64]) -> Vec<String> {
    let label = |sequence: &u64| format!("{job}/{sequence}");
    sequences.iter().map(label).collect()
}

fn in_use(store: &Store) -> imagefmt::Result<Vec<ExportView>> {
    let mut found = Vec::new();
    for image in store.jobs()?.values().flat_map(JobImages::ids) {
        let held_by = store.held_by(&image);
        match store.pins(&image) {
            Ok(pins) if held_by.is_empty() && pins.is_empty() => {}
            Ok(pins) => found.push(ExportView {
                image: image.to_string(),
                store: store.label().to_owned(),
                held_by,
                pins: pins.into_iter().map(|pin| pin.name).collect(),
                error: None,
            }),
            Err(error) => {
                found.push(not_known(
                    &image.to_string(),
                    &store.label(),
                    error.full_message(),
                ));
            }
        }
    }
    Ok(found)
}

/// An entry that says that it is not known who uses an image, or the images of a store.
fn not_known(image: &str, store: &dyn Display, error: String) -> ExportView {
    ExportView {
        image: image.to_owned(),
        store: store.to_string(),
        held_by: Vec::new(),
        pins: Vec::new(),
        error: Some(error),
    }
}

/// What happens to a job by itself.
fn next_event(job: &JobRecord, now: &Moment) -> NextEvent {
    let expiry = job.expires.remaining(now);
    match job.status {
        Status::Running => NextEvent {
            event: Event::RunEnds,
            at: None,
            in_seconds: None,
            text: if job.completing || job.schedule.is_none() {
                "the job is Finished when this sync has ended".to_owned()
            } else {
                let interval = job
                    .pending
                    .interval_seconds
                    .or(job.schedule.map(|s| s.interval_seconds));
                let interval = Duration::from_secs(interval.unwrap_or(0));
                format!("the next sync starts {} after this one has ended", span(interval))
            },
            deferred: None,
        },
        Status::Waiting => {
            let left = job.next_sync.as_ref().map(|next| next.remaining(now));
            let mut next = timed(Event::Sync, left, expiry, now);
            next.deferred = job.deferred.clone().filter(|_| next.event == Event::Sync);
            next
        }
        Status::Ready => {
            let left = job.start_at.map(|at| {
                let seconds = at.duration_since(now.wall).as_secs();
                Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
            });
            match left {
                Some(_) => timed(Event::Start, left, expiry, now),
                None => NextEvent {
                    text: "nothing until the job is started; if it is not, it expires".to_owned(),
                    ..timed(Event::Expire, None, expiry, now)
                },
            }
        }
        Status::Stopped | Status::InError => timed(Event::Expire, Some(expiry), expiry, now),
        Status::Deleting => nothing("its images are being deleted, and then the job"),
        Status::Finished => nothing("nothing: the job is finished. A new job can continue its images"),
        Status::Canceled => nothing("nothing: the job was canceled. A new job can continue its images"),
        Status::Expired => nothing("nothing: its valid time has passed. A new job can continue its images"),
    }
}

/// What comes first: the event, or the job's expiry.
fn timed(event: Event, left: Option<Duration>, expiry: Duration, now: &Moment) -> NextEvent {
    let (event, left) = match left {
        Some(left) if left < expiry => (event, left),
        _ => (Event::Expire, expiry),
    };
    let what = match event {
        Event::Start => "the job starts",
        Event::Sync => "the next sync starts",
        Event::Expire | Event::RunEnds | Event::Nothing => {
            "the job expires unless it is started or completed before"
        }
    };
    NextEvent {
        event,
        at: Some(after(now.wall, left)),
        in_seconds: Some(left.as_secs()),
        text: what.to_owned(),
        deferred: None,
    }
}

fn nothing(text: &str) -> NextEvent {
    NextEvent {
        event: Event::Nothing,
        at: None,
        in_seconds: None,
        text: text.to_owned(),
        deferred: None,
    }
}

fn after(wall: Timestamp, left: Duration) -> Timestamp {
    crate::clock::later(wall, i64::try_from(left.as_secs()).unwrap_or(i64::MAX))
}

/// Whole seconds, as people write them.
fn span(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, HandClock};
    use crate::config::Config;
    use crate::engine::Place;
    use crate::job::{ResolvedInput, new_record};

    #[test]
    fn a_job_of_an_earlier_version_that_wants_what_cannot_be_reached_says_so() {
        let now = HandClock::new().now();
        let config = Config::load(None).unwrap();
        let request = api::CreateJob {
            name: "web01".to_owned(),
            ..Default::default()
        };
        let given = ResolvedInput {
            place: Place::Store("/s".into()),
            disks: Vec::new(),
        };
        let mut job = new_record(&request, given, &config, &now).unwrap();
        assert!(view(&job, &[], &now).warnings.is_empty());
        job.consistency = api::LeastConsistency::Filesystem;
        job.tracking = api::Tracking::Off;
        let warnings = view(&job, &[], &now).warnings;
        assert!(warnings[0].contains("can never be reached"), "{warnings:?}");
        job.status = Status::Finished;
        assert!(view(&job, &[], &now).warnings.is_empty());
    }
}
