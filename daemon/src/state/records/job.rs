//! The record of a job.

use super::image_checks::StoredChecks;
use super::request::StoredRequest;
use super::{Extra, Version};
use crate::clock::Deadline;
use crate::engine::Place;
use crate::job::{ActiveRun, DiskRecord, Ending, JobRecord, Schedule, WriteCounter};
use api::{
    HooksView, IoPriority, LeastConsistency, OnReadError, PendingView, RunType, Status, Tracking, limits,
};
use imagefmt::{DiskIdentity, Uuid};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::ops::Not;
use std::path::{Path, PathBuf};

/// A job, as the database and its note hold it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredJob {
    #[serde(flatten)]
    version: Version,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    description: String,
    #[serde(with = "StatusName")]
    status: Status,
    error: Option<String>,
    warnings: Vec<String>,
    /// Empty where the images go to a target.
    store: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<String>,
    pub(super) disks: Vec<StoredDisk>,
    automatic_incremental: bool,
    pub(super) schedule: Option<StoredSchedule>,
    pub(super) pending: StoredPending,
    pub(super) compress_level: i32,
    pub(super) bandwidth_limit_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) send_limit: Option<String>,
    #[serde(default)]
    io_priority: StoredPriority,
    cluster_size_bytes: Option<u32>,
    #[serde(default, with = "TrackingName")]
    tracking: Tracking,
    #[serde(default = "min_scan_interval")]
    pub(super) min_scan_interval_seconds: u64,
    #[serde(default)]
    pub(super) scan_from: Option<StoredDeadline>,
    #[serde(default)]
    unwatch_owed: bool,
    #[serde(default)]
    pub(super) checks: StoredChecks,
    pub(super) hooks: StoredHooks,
    take_up: Option<String>,
    accept_changed_disk: bool,
    #[serde(default, with = "OnReadErrorName")]
    on_read_error: OnReadError,
    #[serde(default, with = "ConsistencyName")]
    consistency: LeastConsistency,
    #[serde(default)]
    require_consistency: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) freeze_budget_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Not::not")]
    take_over: bool,
    created: Timestamp,
    start_at: Option<Timestamp>,
    pub(super) valid_seconds: u64,
    pub(super) expires: StoredDeadline,
    pub(super) next_sync: Option<StoredDeadline>,
    #[serde(default)]
    deferred: Option<String>,
    completing: bool,
    #[serde(default, skip_serializing_if = "Not::not")]
    verifying: bool,
    pub(super) run: Option<StoredActiveRun>,
    pub(super) runs: u64,
    #[serde(default)]
    pub(super) tracker_misses: u64,
    #[serde(default)]
    pub(super) hooks_owed: Option<u64>,
    #[serde(default)]
    pub(super) thaw_owed: Option<u64>,
    #[serde(default)]
    unconfirmed: bool,
    #[serde(alias = "excess")]
    retention_pending: bool,
    #[serde(default)]
    pub(super) images: Vec<u64>,
    purge: bool,
    #[serde(default)]
    synced: bool,
    written: Option<StoredCounter>,
    request: StoredRequest,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredDisk {
    pub(super) name: String,
    path: PathBuf,
    pub(super) size_bytes: u64,
    #[serde(default)]
    identity: StoredIdentity,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct StoredIdentity {
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wwn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diskseq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    filesystems: Vec<String>,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredSchedule {
    pub(super) interval_seconds: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) max_images: Option<u32>,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredPending {
    pub(super) interval_seconds: Option<u64>,
    pub(super) max_images: Option<u32>,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredHooks {
    pre: Option<String>,
    post: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freeze: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    thaw: Option<String>,
    #[serde(
        default = "freeze_hook_timeout",
        skip_serializing_if = "is_usual_freeze_hook_timeout"
    )]
    pub(super) freeze_timeout_seconds: u64,
    pub(super) timeout_seconds: u64,
    #[serde(flatten)]
    extra: Extra,
}

/// A value as a whole: another deadline is another value, so it inherits nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredDeadline {
    boot: String,
    pub(super) since_boot_ms: u64,
    wall: Timestamp,
    pub(super) span_seconds: u64,
    #[serde(flatten)]
    extra: Extra,
}

/// A value as a whole, like a deadline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredCounter {
    boot: String,
    bytes: u64,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredActiveRun {
    pub(super) number: u64,
    #[serde(with = "RunTypeName")]
    run_type: RunType,
    pub(super) image: Option<u64>,
    #[serde(default)]
    ending: Option<EndingName>,
    #[serde(default)]
    from_waiting: bool,
    #[serde(default)]
    written: Option<StoredCounter>,
    #[serde(flatten)]
    extra: Extra,
}

/// The names of states on disk.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Status")]
enum StatusName {
    Ready,
    Running,
    Waiting,
    Stopped,
    InError,
    Finished,
    Canceled,
    Expired,
    Deleting,
}

/// How changes are found, on disk.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Tracking", rename_all = "snake_case")]
enum TrackingName {
    Auto,
    Off,
}

/// The same where it may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct StoredTracking(#[serde(with = "TrackingName")] pub(super) Tracking);

/// A priority on disk: the words that users write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct StoredPriority(pub(super) IoPriority);

impl TryFrom<String> for StoredPriority {
    type Error = String;

    fn try_from(words: String) -> Result<Self, String> {
        words.parse().map(Self)
    }
}

impl From<StoredPriority> for String {
    fn from(StoredPriority(priority): StoredPriority) -> Self {
        priority.to_string()
    }
}

/// What becomes of sectors that cannot be read, on disk.
#[derive(Serialize, Deserialize)]
#[serde(remote = "OnReadError", rename_all = "snake_case")]
enum OnReadErrorName {
    Stop,
    Skip,
}

/// The same where it may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct StoredOnReadError(#[serde(with = "OnReadErrorName")] pub(super) OnReadError);

/// Classes that images are to have, on disk.
#[derive(Serialize, Deserialize)]
#[serde(remote = "LeastConsistency", rename_all = "snake_case")]
enum ConsistencyName {
    Any,
    Crash,
    Filesystem,
}

/// The same where it may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct StoredConsistency(#[serde(with = "ConsistencyName")] pub(super) LeastConsistency);

/// That of a job of a version without it.
fn freeze_hook_timeout() -> u64 {
    limits::FREEZE_HOOK_TIMEOUT_DEFAULT.as_secs()
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_usual_freeze_hook_timeout(seconds: &u64) -> bool {
    *seconds == freeze_hook_timeout()
}

/// That of a job of a version without it.
fn min_scan_interval() -> u64 {
    limits::MIN_SCAN_INTERVAL_DEFAULT.as_secs()
}

/// Who asked for a run, on disk.
#[derive(Serialize, Deserialize)]
#[serde(remote = "RunType", rename_all = "snake_case")]
pub(super) enum RunTypeName {
    Manual,
    Schedule,
}

/// Why a run is being ended, on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EndingName {
    Stop,
    Cancel,
    Shutdown,
}

impl StoredJob {
    /// Whether it will not sync any more.
    pub fn is_over(&self) -> bool {
        !self.status.is_unfinished()
    }

    /// As it is written now, with the unknown fields of what was written before.
    pub fn new(job: &JobRecord, before: Option<Self>) -> Self {
        let mut stored = Self::from(job);
        if let Some(before) = before {
            stored.inherit(before);
        }
        stored
    }

    /// Takes over the unknown fields of an earlier record of the same job.
    fn inherit(&mut self, before: Self) {
        self.extra = before.extra;
        self.pending.extra = before.pending.extra;
        self.hooks.extra = before.hooks.extra;
        self.checks.inherit(before.checks);
        if let (Some(schedule), Some(before)) = (&mut self.schedule, before.schedule) {
            schedule.extra = before.extra;
        }
        if let (Some(run), Some(before)) = (&mut self.run, before.run)
            && run.number == before.number
        {
            run.extra = before.extra;
            keep_value(run.written.as_mut(), before.written, |counter| &mut counter.extra);
        }
        keep_value(self.written.as_mut(), before.written, |counter| {
            &mut counter.extra
        });
        keep_value(self.next_sync.as_mut(), before.next_sync, |deadline| {
            &mut deadline.extra
        });
        keep_value(self.scan_from.as_mut(), before.scan_from, |deadline| {
            &mut deadline.extra
        });
        keep_value(Some(&mut self.expires), Some(before.expires), |deadline| {
            &mut deadline.extra
        });
        for disk in &mut self.disks {
            let known = before.disks.iter().find(|before| before.name == disk.name);
            if let Some(known) = known {
                disk.extra.clone_from(&known.extra);
                disk.identity.extra.clone_from(&known.identity.extra);
            }
        }
        self.request.inherit(before.request);
    }

    /// The job that it describes.
    pub fn into_job(self) -> JobRecord {
        JobRecord {
            name: self.name,
            id: self.id,
            description: self.description,
            status: self.status,
            error: self.error,
            warnings: self.warnings,
            place: self.target.map_or(Place::Store(self.store), Place::Target),
            disks: self.disks.into_iter().map(StoredDisk::into_disk).collect(),
            automatic_incremental: self.automatic_incremental,
            schedule: self.schedule.map(|schedule| Schedule {
                interval_seconds: schedule.interval_seconds,
                max_images: schedule.max_images,
            }),
            pending: PendingView {
                interval_seconds: self.pending.interval_seconds,
                max_images: self.pending.max_images,
            },
            compress_level: self.compress_level,
            bandwidth_limit_bytes: self.bandwidth_limit_bytes,
            send_limit: self.send_limit,
            io_priority: self.io_priority.0,
            cluster_size_bytes: self.cluster_size_bytes,
            tracking: self.tracking,
            min_scan_interval_seconds: self.min_scan_interval_seconds,
            scan_from: self.scan_from.map(StoredDeadline::into_deadline),
            unwatch_owed: self.unwatch_owed,
            checks: self.checks.into_checks(),
            hooks: HooksView {
                pre: self.hooks.pre,
                post: self.hooks.post,
                freeze: self.hooks.freeze,
                thaw: self.hooks.thaw,
                freeze_timeout_seconds: self.hooks.freeze_timeout_seconds,
                timeout_seconds: self.hooks.timeout_seconds,
            },
            take_up: self.take_up,
            accept_changed_disk: self.accept_changed_disk,
            on_read_error: self.on_read_error,
            consistency: self.consistency,
            require_consistency: self.require_consistency,
            freeze_budget_ms: self.freeze_budget_ms,
            take_over: self.take_over,
            created: self.created,
            start_at: self.start_at,
            valid_seconds: self.valid_seconds,
            expires: self.expires.into_deadline(),
            next_sync: self.next_sync.map(StoredDeadline::into_deadline),
            deferred: self.deferred,
            completing: self.completing,
            verifying: self.verifying,
            run: self.run.map(StoredActiveRun::into_run),
            runs: self.runs,
            tracker_misses: self.tracker_misses,
            hooks_owed: self.hooks_owed,
            thaw_owed: self.thaw_owed,
            unconfirmed: self.unconfirmed,
            retention_pending: self.retention_pending,
            images: self.images,
            purge: self.purge,
            synced: self.synced,
            written: self.written.map(StoredCounter::into_counter),
            request: self.request.into_request(),
        }
    }
}

/// Takes over the unknown fields of a value that has not changed.
pub(super) fn keep_value<T: PartialEq>(
    now: Option<&mut T>,
    before: Option<T>,
    extra: impl Fn(&mut T) -> &mut Extra,
) {
    if let (Some(now), Some(mut before)) = (now, before) {
        let fields = std::mem::take(extra(&mut before));
        if *now == before {
            *extra(now) = fields;
        }
    }
}

/// The format that knows targets: readers of an earlier one would look for a store.
const WITH_TARGETS: u32 = 8;

/// The format that knows jobs which somebody has to confirm, and times between syncs that are shorter than those between full reads:
/// readers of an earlier one would act without asking, or read a whole disk every few minutes.
const WITH_CONFIRMATION: u32 = 7;

fn version_of(job: &JobRecord) -> Version {
    let scans_often = job.intervals().any(|interval| interval < min_scan_interval());
    if job.place.target().is_some() {
        Version::not_before(WITH_TARGETS)
    } else if job.unconfirmed || scans_often {
        Version::not_before(WITH_CONFIRMATION)
    } else {
        Version::CURRENT
    }
}

impl From<&JobRecord> for StoredJob {
    fn from(job: &JobRecord) -> Self {
        Self {
            version: version_of(job),
            name: job.name.clone(),
            id: job.id,
            description: job.description.clone(),
            status: job.status,
            error: job.error.clone(),
            warnings: job.warnings.clone(),
            store: job.place.store().map(Path::to_owned).unwrap_or_default(),
            target: job.place.target().map(str::to_owned),
            disks: job.disks.iter().map(StoredDisk::from).collect(),
            automatic_incremental: job.automatic_incremental,
            schedule: job.schedule.map(|schedule| StoredSchedule {
                interval_seconds: schedule.interval_seconds,
                max_images: schedule.max_images,
                extra: Extra::new(),
            }),
            pending: StoredPending {
                interval_seconds: job.pending.interval_seconds,
                max_images: job.pending.max_images,
                extra: Extra::new(),
            },
            compress_level: job.compress_level,
            bandwidth_limit_bytes: job.bandwidth_limit_bytes,
            send_limit: job.send_limit.clone(),
            io_priority: StoredPriority(job.io_priority),
            cluster_size_bytes: job.cluster_size_bytes,
            tracking: job.tracking,
            min_scan_interval_seconds: job.min_scan_interval_seconds,
            scan_from: job.scan_from.as_ref().map(StoredDeadline::from),
            unwatch_owed: job.unwatch_owed,
            checks: StoredChecks::from(&job.checks),
            hooks: StoredHooks {
                pre: job.hooks.pre.clone(),
                post: job.hooks.post.clone(),
                freeze: job.hooks.freeze.clone(),
                thaw: job.hooks.thaw.clone(),
                freeze_timeout_seconds: job.hooks.freeze_timeout_seconds,
                timeout_seconds: job.hooks.timeout_seconds,
                extra: Extra::new(),
            },
            take_up: job.take_up.clone(),
            accept_changed_disk: job.accept_changed_disk,
            on_read_error: job.on_read_error,
            consistency: job.consistency,
            require_consistency: job.require_consistency,
            freeze_budget_ms: job.freeze_budget_ms,
            take_over: job.take_over,
            created: job.created,
            start_at: job.start_at,
            valid_seconds: job.valid_seconds,
            expires: StoredDeadline::from(&job.expires),
            next_sync: job.next_sync.as_ref().map(StoredDeadline::from),
            deferred: job.deferred.clone(),
            completing: job.completing,
            verifying: job.verifying,
            run: job.run.as_ref().map(StoredActiveRun::from),
            runs: job.runs,
            tracker_misses: job.tracker_misses,
            hooks_owed: job.hooks_owed,
            thaw_owed: job.thaw_owed,
            unconfirmed: job.unconfirmed,
            retention_pending: job.retention_pending,
            images: job.images.clone(),
            purge: job.purge,
            synced: job.synced,
            written: job.written.as_ref().map(StoredCounter::from),
            request: StoredRequest::from(&job.request),
            extra: Extra::new(),
        }
    }
}

impl From<&DiskRecord> for StoredDisk {
    fn from(disk: &DiskRecord) -> Self {
        // Named one by one: a field that is added must not be forgotten here.
        let DiskIdentity {
            serial,
            wwn,
            uuid,
            backing_file,
            model,
            partition,
            diskseq,
            table,
            filesystems,
        } = disk.identity.clone();
        Self {
            name: disk.name.clone(),
            path: disk.path.clone(),
            size_bytes: disk.size_bytes,
            identity: StoredIdentity {
                serial,
                wwn,
                uuid,
                backing_file,
                model,
                partition,
                diskseq,
                table,
                filesystems,
                extra: Extra::new(),
            },
            extra: Extra::new(),
        }
    }
}

impl StoredDisk {
    fn into_disk(self) -> DiskRecord {
        let identity = self.identity;
        DiskRecord {
            name: self.name,
            path: self.path,
            size_bytes: self.size_bytes,
            identity: DiskIdentity {
                serial: identity.serial,
                wwn: identity.wwn,
                uuid: identity.uuid,
                backing_file: identity.backing_file,
                model: identity.model,
                partition: identity.partition,
                diskseq: identity.diskseq,
                table: identity.table,
                filesystems: identity.filesystems,
            },
        }
    }
}

impl From<&Deadline> for StoredDeadline {
    fn from(deadline: &Deadline) -> Self {
        Self {
            boot: deadline.boot.clone(),
            since_boot_ms: deadline.since_boot_ms,
            wall: deadline.wall,
            span_seconds: deadline.span_seconds,
            extra: Extra::new(),
        }
    }
}

impl StoredDeadline {
    fn into_deadline(self) -> Deadline {
        Deadline {
            boot: self.boot,
            since_boot_ms: self.since_boot_ms,
            wall: self.wall,
            span_seconds: self.span_seconds,
        }
    }
}

impl From<&WriteCounter> for StoredCounter {
    fn from(counter: &WriteCounter) -> Self {
        Self {
            boot: counter.boot.clone(),
            bytes: counter.bytes,
            extra: Extra::new(),
        }
    }
}

impl StoredCounter {
    fn into_counter(self) -> WriteCounter {
        WriteCounter {
            boot: self.boot,
            bytes: self.bytes,
        }
    }
}

impl From<&ActiveRun> for StoredActiveRun {
    fn from(run: &ActiveRun) -> Self {
        Self {
            number: run.number,
            run_type: run.run_type,
            image: run.image,
            ending: run.ending.map(EndingName::from),
            from_waiting: run.from_waiting,
            written: run.written.as_ref().map(StoredCounter::from),
            extra: Extra::new(),
        }
    }
}

impl StoredActiveRun {
    fn into_run(self) -> ActiveRun {
        ActiveRun {
            number: self.number,
            run_type: self.run_type,
            image: self.image,
            ending: self.ending.map(Ending::from),
            from_waiting: self.from_waiting,
            written: self.written.map(StoredCounter::into_counter),
        }
    }
}

impl From<Ending> for EndingName {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Stop => Self::Stop,
            Ending::Cancel => Self::Cancel,
            Ending::Shutdown => Self::Shutdown,
        }
    }
}

impl From<EndingName> for Ending {
    fn from(name: EndingName) -> Self {
        match name {
            EndingName::Stop => Self::Stop,
            EndingName::Cancel => Self::Cancel,
            EndingName::Shutdown => Self::Shutdown,
        }
    }
}
