//! The tracker, as the service uses it: for which jobs, what is told of it, and when disks are let go.
//!
//! A job's record says that its disks may be watched from before its first tracked sync until they were let go: so nothing
//! stays in the kernel, whatever happens to smcd in between.

use super::background::Task;
use super::parts::Parts;
use super::table::Locked;
use crate::job::{DiskRecord, JobRecord, Refusal, Refused};
use api::{DiskTracking, RunType, TrackedDisk, TrackerView, Tracking};
use hostdev::{DeviceNumber, Root};
use imagefmt::ClusterSize;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracker::{Distrust, ErrorKind, Support, Target, Tracker, WatchStatus};

/// Whether a sync of a job may read whole disks: a scheduled one not too often.
pub fn may_scan(parts: &Parts, job: &JobRecord, run_type: RunType) -> bool {
    let now = parts.now();
    let too_early = job.scan_from.as_ref().is_some_and(|from| !from.is_due(&now));
    let mut intervals = job.intervals();
    let is_frequent = intervals.any(|interval| interval < job.min_scan_interval_seconds);
    !(run_type == RunType::Schedule && is_frequent && too_early)
}

/// Refuses a sync that may not read whole disks if the tracker does not vouch for all of them, as far as can be told
/// without the job's store.
///
/// # Errors
/// Which disk would be read completely, and why.
pub fn check_early_scan(parts: &Parts, job: &JobRecord, run_type: RunType) -> Result<(), String> {
    if may_scan(parts, job, run_type) {
        return Ok(());
    }
    let known = of_job(parts, job);
    for (disk, tracking) in job.disks.iter().zip(known) {
        if let Some(doubt) = tracking.and_then(|tracking| tracking.doubt) {
            return Err(format!("{} would have to be read completely: {doubt}", disk.name));
        }
    }
    Ok(())
}

/// Refuses an interval that only tracked disks can have, where they cannot be tracked.
///
/// # Errors
/// `Invalid`, with the reason.
pub fn check_intervals(parts: &Parts, job: &JobRecord) -> Refused<()> {
    let least = parts.config.min_interval;
    let Some(interval) = job
        .intervals()
        .find(|&seconds| Duration::from_secs(seconds) < least)
    else {
        return Ok(());
    };
    let shown = |time: Duration| humantime::format_duration(time).to_string();
    let refuse = |reason: &str| {
        Err(Refusal::invalid(format!(
            "interval {} is only possible where the disks are tracked, and otherwise at least {}: {reason}",
            shown(Duration::from_secs(interval)),
            shown(least)
        )))
    };
    if let Some(disk) = job.disks.iter().find(|disk| device_of(&disk.path).is_none()) {
        return refuse(&format!("{} is no block device", disk.path.display()));
    }
    match tracker::support(&parts.config.tracker) {
        Support::Available => Ok(()),
        Support::Unavailable { reason } => refuse(&format!("this machine cannot track: {reason}")),
    }
}

fn device_of(path: &Path) -> Option<DeviceNumber> {
    DeviceNumber::of_block_device(&std::fs::metadata(path).ok()?)
}

/// The tracker as it is now, for the service.
pub fn view(parts: &Parts) -> TrackerView {
    let jobs = devices_of_jobs(&parts.table.lock());
    let view = read(&parts.config.tracker, &jobs);
    parts.tracker.keep(&view);
    view
}

/// The tracker in a directory as it is now; `jobs` are those that track a device.
pub fn read(directory: &Path, jobs: &BTreeMap<DeviceNumber, Vec<String>>) -> TrackerView {
    let mut view = TrackerView {
        available: true,
        unavailable_reason: None,
        attached: false,
        problem: None,
        directory: directory.display().to_string(),
        events: 0,
        memory_bytes: 0,
        disks: Vec::new(),
    };
    match Tracker::find(directory).and_then(|found| found.map(|found| found.status()).transpose()) {
        Ok(Some(status)) => {
            view.attached = true;
            view.events = status.worked.iter().sum();
            view.disks = status
                .watches
                .iter()
                .map(|watch| disk_view(watch, jobs))
                .collect();
            view.memory_bytes = view.disks.iter().map(|disk| disk.memory_bytes).sum();
            let unreadable = status.unreadable.iter().map(|(_, reason)| reason.as_str());
            let unreadable: Vec<_> = unreadable.collect();
            view.problem = (!unreadable.is_empty()).then(|| unreadable.join("; "));
        }
        Ok(None) => {
            if let Support::Unavailable { reason } = tracker::support(directory) {
                view.available = false;
                view.unavailable_reason = Some(reason);
            }
        }
        Err(error) => view.problem = Some(error.full_message()),
    }
    view
}

fn disk_view(watch: &WatchStatus, jobs: &BTreeMap<DeviceNumber, Vec<String>>) -> TrackedDisk {
    let doubt = watch.distrust.as_ref().map(Distrust::to_string);
    TrackedDisk {
        name: watch.name.clone().unwrap_or_else(|| watch.device.to_string()),
        jobs: jobs.get(&watch.device).cloned().unwrap_or_default(),
        since: Timestamp::try_from(watch.since).unwrap_or(Timestamp::UNIX_EPOCH),
        cluster_bytes: watch.cluster_bytes,
        dirty_clusters: watch.dirty_clusters,
        dirty_bytes: dirty_bytes(watch),
        under_way: watch.is_under_way,
        trusted: doubt.is_none(),
        doubt,
        missed: watch.distrust.as_ref().is_some_and(is_missed),
        events: watch.events,
        memory_bytes: watch.memory_bytes,
    }
}

/// Whether writes were missed, or may have been: not merely that there is no image to compare with.
fn is_missed(doubt: &Distrust) -> bool {
    matches!(
        doubt,
        Distrust::Missed { .. }
            | Distrust::Counters { .. }
            | Distrust::Unbalanced { .. }
            | Distrust::Failed { .. }
    )
}

fn dirty_bytes(watch: &WatchStatus) -> u64 {
    watch.dirty_clusters.saturating_mul(watch.cluster_bytes.into())
}

/// Which unfinished jobs track which devices.
fn devices_of_jobs(table: &Locked<'_>) -> BTreeMap<DeviceNumber, Vec<String>> {
    let mut found: BTreeMap<DeviceNumber, Vec<String>> = BTreeMap::new();
    for job in table.jobs().values().filter(|job| job.is_to_be_tracked()) {
        for device in job.disks.iter().filter_map(|disk| device_of(&disk.path)) {
            found.entry(device).or_default().push(job.name.clone());
        }
    }
    found
}

/// What the tracker knows of a job's disks, in their order; nothing for a job that will not sync again.
pub fn of_job(parts: &Parts, job: &JobRecord) -> Vec<Option<DiskTracking>> {
    if !job.status.is_unfinished() {
        return job.disks.iter().map(|_| None).collect();
    }
    let tracker = match job.tracking {
        Tracking::Off => Err("tracking is switched off".to_owned()),
        Tracking::Auto => match Tracker::find(&parts.config.tracker) {
            Ok(found) => found.ok_or_else(|| not_attached(parts)),
            Err(error) => Err(error.full_message()),
        },
    };
    let cluster_bytes = job.cluster_size_bytes.unwrap_or(ClusterSize::K64.bytes());
    let tracking = |disk: &DiskRecord| {
        let status = tracker
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|tracker| status_of(tracker, disk, cluster_bytes));
        Some(disk_tracking(status))
    };
    job.disks.iter().map(tracking).collect()
}

fn not_attached(parts: &Parts) -> String {
    match tracker::support(&parts.config.tracker) {
        Support::Available => "the next sync begins to track it".to_owned(),
        Support::Unavailable { reason } => format!("this machine cannot track: {reason}"),
    }
}

fn status_of(tracker: &Tracker, disk: &DiskRecord, cluster_bytes: u32) -> Result<WatchStatus, String> {
    let device = device_of(&disk.path).ok_or_else(|| "it is no block device".to_owned())?;
    let target = Target::of(&Root::system(), device, cluster_bytes).map_err(|error| error.full_message())?;
    let watch = tracker.watched(&target).map_err(|error| error.full_message())?;
    let watch = watch.ok_or_else(|| "the next sync begins to track it".to_owned())?;
    watch.status().map_err(|error| error.full_message())
}

fn disk_tracking(status: Result<WatchStatus, String>) -> DiskTracking {
    match status {
        Ok(watch) => DiskTracking {
            trusted: watch.distrust.is_none(),
            doubt: watch.distrust.as_ref().map(Distrust::to_string),
            since: Timestamp::try_from(watch.since).ok(),
            dirty_bytes: dirty_bytes(&watch),
        },
        Err(doubt) => DiskTracking {
            trusted: false,
            doubt: Some(doubt),
            since: None,
            dirty_bytes: 0,
        },
    }
}

/// Looks at the tracker in the background, for those who must not wait.
pub fn look_in_background(parts: &Arc<Parts>) {
    parts.in_background(Task::Tracker, |parts| {
        view(parts);
    });
}

/// Lets go of the disks of a job that does not track them any more, in the background.
pub fn release_in_background(parts: &Arc<Parts>, name: &str) {
    let Ok(job) = parts.table.job(name) else { return };
    if job.unwatch_owed && !job.is_to_be_tracked() && !parts.live.contains(name) {
        parts.in_background(Task::Unwatch(job.name.clone()), move |parts| {
            release(parts, &job);
        });
    }
}

/// Lets go of the disks of a job, unless another job tracks them. What is in the way is in the log, and tried again every
/// minute.
pub fn release(parts: &Parts, job: &JobRecord) {
    let kept = devices_of_others(parts, job);
    let devices = job.disks.iter().filter_map(|disk| device_of(&disk.path));
    let devices: Vec<_> = devices.filter(|device| !kept.contains(device)).collect();
    if let Err(error) = unwatch(&parts.config.tracker, &devices) {
        let error = error.full_message();
        return tracing::warn!(job = job.name, "its disks are still tracked: {error}");
    }
    let saved = parts.table.update(&job.name, |job| {
        job.unwatch_owed = false;
        Ok(None)
    });
    if let Err(error) = saved {
        tracing::warn!(job = job.name, "{error}");
    }
}

/// Devices that other jobs track, or may: nobody knows it of jobs whose records cannot be read.
fn devices_of_others(parts: &Parts, job: &JobRecord) -> Vec<DeviceNumber> {
    let paths: Vec<PathBuf> = {
        let table = parts.table.lock();
        let others = table.jobs().values().filter(|other| other.name != job.name);
        let of_others = others
            .filter(|other| other.is_to_be_tracked())
            .flat_map(|other| other.disks.iter().map(|disk| disk.path.clone()));
        let unreadable = table.unreadable().values().flat_map(|other| other.disks.clone());
        of_others.chain(unreadable).collect()
    };
    paths.iter().filter_map(|path| device_of(path)).collect()
}

/// Ends the watches of devices, and of those that are gone; without any left, nothing stays in the kernel.
fn unwatch(directory: &Path, devices: &[DeviceNumber]) -> tracker::Result<()> {
    let tracker = match Tracker::find(directory) {
        Ok(Some(tracker)) => tracker,
        Ok(None) => return Ok(()),
        // What another version or a crash left tracks nothing that a job could still use.
        Err(error) if matches!(error.kind(), ErrorKind::OtherVersion | ErrorKind::Incomplete) => {
            return Tracker::remove(directory);
        }
        Err(error) => return Err(error),
    };
    for &device in devices {
        tracker.unwatch_device(device)?;
    }
    let watches = tracker.status()?.watches;
    let (gone, left): (Vec<_>, Vec<_>) = watches.into_iter().partition(|watch| watch.name.is_none());
    for watch in gone {
        tracker.unwatch_device(watch.device)?;
    }
    if left.is_empty() {
        Tracker::remove(directory)?;
    }
    Ok(())
}

/// Takes the tracker out of the kernel.
///
/// # Errors
/// `Conflict` while a job tracks its disks; otherwise when the kernel refuses.
pub fn remove(parts: &Parts) -> Refused<TrackerView> {
    let jobs: Vec<String> = {
        let table = parts.table.lock();
        let tracking = table.jobs().values().filter(|job| job.is_to_be_tracked());
        tracking.map(|job| job.name.clone()).collect()
    };
    if !jobs.is_empty() {
        return Err(Refusal::conflict(format!(
            "the disks of {} are tracked: complete or cancel the job, or modify it with tracking off",
            jobs.join(", ")
        )));
    }
    Tracker::remove(&parts.config.tracker).map_err(|error| Refusal::failed(&error.into()))?;
    Ok(view(parts))
}
