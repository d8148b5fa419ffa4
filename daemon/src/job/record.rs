//! A job as the daemon knows it. `state/records` is how it is written down.

use super::checks::ImageChecks;
use crate::clock::Deadline;
use crate::config::Config;
use crate::engine::{DiskArg, Given, Known, Place, Request, TrackMode, UseTracker};
use crate::owner;
use crate::targets;
use api::{
    CreateJob, DiskView, HooksView, IoPriority, LeastConsistency, OnReadError, PendingView, RunType, Status,
    Tracking,
};
use hostdev::Machine;
use imagefmt::{ClusterSize, DiskIdentity, TakeOver, Uuid};
use jiff::Timestamp;
use remote::SendLimit;
use std::path::PathBuf;
use std::time::Duration;

/// A job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    pub name: String,
    /// What tells it from other jobs of its name; absent in jobs of earlier versions.
    pub id: Option<Uuid>,
    pub description: String,
    pub status: Status,
    /// Why it is InError.
    pub error: Option<String>,
    /// What the user should know; replaced by every run.
    pub warnings: Vec<String>,
    /// Where its images go.
    pub place: Place,
    pub disks: Vec<DiskRecord>,
    pub automatic_incremental: bool,
    /// In force. Nothing for a job that is a single full sync.
    pub schedule: Option<Schedule>,
    /// In force after the next sync.
    pub pending: PendingView,
    pub compress_level: i32,
    pub bandwidth_limit_bytes: u64,
    /// How much is sent to a target, as people write it; `None` for no limit.
    pub send_limit: Option<String>,
    pub io_priority: IoPriority,
    pub cluster_size_bytes: Option<u32>,
    /// How changes are found.
    pub tracking: Tracking,
    /// From the start of one scheduled sync that reads a whole disk to that of the next, at least.
    pub min_scan_interval_seconds: u64,
    /// From when on a scheduled sync may read a whole disk again.
    pub scan_from: Option<Deadline>,
    /// The tracker watches its disks, or may: they are to be let go when the job needs it no longer.
    pub unwatch_owed: bool,
    /// What is checked of its images.
    pub checks: ImageChecks,
    pub hooks: HooksView,
    pub take_up: Option<String>,
    pub accept_changed_disk: bool,
    /// What becomes of sectors that cannot be read.
    pub on_read_error: OnReadError,
    /// The class that its images are to have at least.
    pub consistency: LeastConsistency,
    /// Whether a sync whose image has not that class fails.
    pub require_consistency: bool,
    /// How long a sync may hold writers, in milliseconds; 0: not at all; `None`: as long as the class needs.
    pub freeze_budget_ms: Option<u64>,
    /// The next image takes over images that belong to another machine or job.
    pub take_over: bool,
    pub created: Timestamp,
    pub start_at: Option<Timestamp>,
    pub valid_seconds: u64,
    pub expires: Deadline,
    /// While Waiting: when the next sync starts.
    pub next_sync: Option<Deadline>,
    /// While Waiting: why the next sync was deferred.
    pub deferred: Option<String>,
    /// The next sync is the last one.
    pub completing: bool,
    /// The last sync is compared with its image before the job is finished.
    pub verifying: bool,
    /// While Running: the run.
    pub run: Option<ActiveRun>,
    /// Number of the last run.
    pub runs: u64,
    /// How often an audit has found that the tracker of one of its disks had missed writes, in all runs.
    pub tracker_misses: u64,
    /// The run whose pre hooks have run, or may have, and whose post hooks have not.
    pub hooks_owed: Option<u64>,
    /// The run whose freeze hooks have run, or may have, and whose thaw hooks have not.
    pub thaw_owed: Option<u64>,
    /// It was found in a store, and nothing proves that its record there is this machine's own: nobody acts on it before
    /// root has confirmed it.
    pub unconfirmed: bool,
    /// There are more images than are to be kept, since they were in use.
    pub retention_pending: bool,
    /// Numbers of its images, ascending, as they were when its store was last asked.
    pub images: Vec<u64>,
    /// While Deleting: the images go too.
    pub purge: bool,
    /// Whether a run has made an image.
    pub synced: bool,
    /// How much had been written to the disks when the last run that made an image began.
    pub written: Option<WriteCounter>,
    /// What was asked for, to tell a repeated request from another one.
    pub request: CreateJob,
}

/// A disk of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRecord {
    pub name: String,
    pub path: PathBuf,
    pub size_bytes: u64,
    /// What it was known by when the job was created: a first sync has no image to compare it with.
    pub identity: DiskIdentity,
}

impl DiskRecord {
    /// As the job knows it.
    pub fn known(&self) -> Known<'_> {
        Known {
            name: &self.name,
            size_bytes: self.size_bytes,
            identity: &self.identity,
        }
    }

    /// As it was when the job was created, to be compared with what is known of it.
    pub fn given(&self) -> Given<'_> {
        Given {
            name: &self.name,
            path: &self.path,
            size_bytes: self.size_bytes,
            identity: &self.identity,
        }
    }
}

/// When and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    pub interval_seconds: u64,
    /// `None` with a target, which decides itself how many images it keeps.
    pub max_images: Option<u32>,
}

/// A run that is going on, or was when the daemon ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveRun {
    pub number: u64,
    pub run_type: RunType,
    /// The number of the image that it makes, once that is known.
    pub image: Option<u64>,
    /// What was asked of it meanwhile.
    pub ending: Option<Ending>,
    /// Whether the job was Waiting before: then what is in the way of this sync puts it off.
    pub from_waiting: bool,
    /// How much had been written to the disks when it began.
    pub written: Option<WriteCounter>,
}

/// Why a sync was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By the user, to go on later.
    Stop,
    /// By the user, for good.
    Cancel,
    /// The daemon ends; it goes on when that starts again.
    Shutdown,
}

impl Ending {
    /// As clients see it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Cancel => "cancel",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The kernel's count of what was written to the disks, valid in one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteCounter {
    pub boot: String,
    pub bytes: u64,
}

impl JobRecord {
    /// What a sync of it on `machine` is.
    pub fn sync_request(&self, machine: &Machine, config: &Config) -> Request {
        let disk = |disk: &DiskRecord| DiskArg {
            name: Some(disk.name.clone()),
            path: disk.path.clone(),
        };
        Request {
            job: self.name.clone(),
            // A job that continues images of its own name continues no other job.
            take_up: self.take_up.clone().filter(|from| *from != self.name),
            disks: self.disks.iter().map(disk).collect(),
            cluster_size: self
                .cluster_size_bytes
                .and_then(|bytes| ClusterSize::from_bytes(bytes.into()).ok()),
            compress_level: self.compress_level,
            checkpoint_every: config.checkpoint_every,
            accept_changed_disk: self.accept_changed_disk,
            on_read_error: self.on_read_error,
            freeze: self.freeze_budget(),
            offline: false,
            verify: self.verifying,
            owner: owner::owner(machine, &self.name, self.id),
            take_over: if self.take_over {
                TakeOver::Always
            } else {
                TakeOver::Never
            },
            tracker: UseTracker {
                mode: match self.tracking {
                    Tracking::Auto => TrackMode::Start,
                    Tracking::Off => TrackMode::Off,
                },
                directory: config.tracker.clone(),
                may_scan: true,
            },
        }
    }

    /// How much is sent to a target. A text that cannot be read was not written by smcd, and limits nothing.
    pub fn send_limit(&self) -> SendLimit {
        let limit = self.send_limit.as_deref().map(targets::parse_send_limit);
        limit.and_then(Result::ok).unwrap_or_default()
    }

    /// How long its syncs may hold writers; `None` if they freeze nothing.
    pub fn freeze_budget(&self) -> Option<Duration> {
        let asked = self.freeze_budget_ms.map(Duration::from_millis);
        self.consistency.freeze_budget(asked)
    }

    /// Its intervals in seconds, the one to come too.
    pub fn intervals(&self) -> impl Iterator<Item = u64> {
        let now = self.schedule.map(|schedule| schedule.interval_seconds);
        now.into_iter().chain(self.pending.interval_seconds)
    }

    /// Whether its next sync uses the tracker where there is one.
    pub fn is_to_be_tracked(&self) -> bool {
        self.tracking == Tracking::Auto && self.status.is_unfinished() && !self.unconfirmed
    }

    /// What was modified meanwhile counts from now on.
    pub fn apply_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if let Some(schedule) = &mut self.schedule {
            schedule.interval_seconds = pending.interval_seconds.unwrap_or(schedule.interval_seconds);
            schedule.max_images = pending.max_images.or(schedule.max_images);
        }
    }

    /// The disks as clients see them.
    pub fn disk_views(&self) -> Vec<DiskView> {
        let view = |disk: &DiskRecord| DiskView {
            name: disk.name.clone(),
            path: disk.path.display().to_string(),
            size_bytes: disk.size_bytes,
            tracking: None,
        };
        self.disks.iter().map(view).collect()
    }

    /// Bytes of all disks.
    pub fn total_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.size_bytes).sum()
    }

    /// An image of it as people write it.
    pub fn label(&self, sequence: u64) -> String {
        format!("{}/{sequence}", self.name)
    }
}
