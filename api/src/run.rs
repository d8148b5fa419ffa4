//! Syncs of a job: the running one, the past ones, and the forecast of the last one.

use crate::instant::RunInstant;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// The phase of a running sync.
///
/// - `Preparing`: running hooks, opening the disks and the store.
/// - `Comparing` (incremental sync): reading the disks and comparing them with the last image; differences are stored
///   at the same time.
/// - `Transferring` (full sync): reading the disks and storing everything.
/// - `Processing`: making the image durable, and comparing it with the disks where that was asked for.
/// - `Cleaning`: running hooks and deleting images beyond the number to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Phase {
    /// Running hooks, opening the disks and the store.
    Preparing,
    /// Incremental sync: reading and comparing the disks; differences are stored at the same time.
    Comparing,
    /// Full sync: reading the disks and storing everything.
    Transferring,
    /// Making the image durable, and comparing it with the disks where that was asked for.
    Processing,
    /// Running hooks and deleting images beyond the number to keep.
    Cleaning,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Preparing => "Preparing",
            Self::Comparing => "Comparing",
            Self::Transferring => "Transferring",
            Self::Processing => "Processing",
            Self::Cleaning => "Cleaning",
        })
    }
}

/// The progress of a running sync. Comparing is limited by the disk, storing by the amount of change, so each has
/// its own figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// The phase of the sync.
    pub phase: Phase,
    /// The image that the sync is creating, for example `web01/8`. Absent while Preparing.
    pub image: Option<String>,
    /// When the sync started.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// How long the sync has been running, in seconds.
    pub elapsed_seconds: f64,
    /// The names of the disks being read, separated by `, `: for example `vda, vdb`. Absent before the first disk and
    /// after the last.
    pub disk: Option<String>,
    /// The bytes read and compared so far, of all disks together.
    pub compared_bytes: u64,
    /// The size of all disks together, in bytes.
    pub total_bytes: u64,
    /// `compared_bytes` as a percentage of `total_bytes`, 0 to 100.
    pub percent: f64,
    /// The rate of comparing over the last few seconds, in bytes per second.
    pub compare_rate_bytes: u64,
    /// The bytes found so far that differ from the last image.
    pub dirty_bytes: u64,
    /// The bytes stored for these differences, after compression.
    pub stored_bytes: u64,
    /// The rate of storing over the last few seconds, in bytes per second.
    pub store_rate_bytes: u64,
    /// The seconds until everything is compared, at the current rate. Absent if it cannot be estimated.
    pub eta_seconds: Option<u64>,
    /// Whether this sync resumes an unfinished one.
    pub resumed: bool,
    /// What the sync or its checkpoints wait for: `waiting until suspended smc-image (pid 4711) has finished`, for example, or
    /// that the store has not answered for more than 5 s, or that nothing was read or stored for more than 30 s. Absent if the
    /// sync does not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_up: Option<String>,
    /// The sync waits for its target: since when, and why. Absent if it does not, and with a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for_target: Option<TargetWait>,
    /// What the sync has sent to its target. Absent with a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
}

/// What a running sync has sent to its target: that is limited by the line, beside comparing, which is limited by the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Transfer {
    /// The bytes sent so far, those included that were sent again after a connection was lost.
    pub sent_bytes: u64,
    /// The rate of sending over the last few seconds, in bytes per second.
    pub send_rate_bytes: u64,
    /// The bytes sent that survive a power cut of the target. If the target is lost now, only what came after them is sent again.
    pub durable_bytes: u64,
}

/// How a sync waits for its target. It does so for as long as the job lives, and needs no help: it continues when the target
/// answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetWait {
    /// Since when the target cannot be reached, or takes nothing.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Why that is so, in words.
    pub reason: String,
    /// When the target is tried again. Absent while it is being tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_try: Option<Timestamp>,
}

/// What started a sync: `manual` (a person) or `schedule` (the job's interval or `start_at`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunType {
    /// A person started it.
    Manual,
    /// The schedule started it.
    Schedule,
}

impl fmt::Display for RunType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Manual => "manual",
            Self::Schedule => "schedule",
        })
    }
}

/// How a run ended.
///
/// - `running`: it is still running.
/// - `succeeded`: it created an image.
/// - `stopped`: it was stopped; what it stored is kept for the next run.
/// - `canceled`: it was canceled with the job.
/// - `failed`: it failed; `error` says why.
/// - `deferred`: it was due by the schedule, and is tried again later; `error` says why.
/// - `interrupted`: the daemon or the machine went down during the run; the next run resumes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// It is still running.
    Running,
    /// It created an image.
    Succeeded,
    /// It was stopped; what it stored is kept for the next run.
    Stopped,
    /// It was canceled with the job.
    Canceled,
    /// It failed.
    Failed,
    /// It was due by the schedule, and is tried again later.
    Deferred,
    /// The daemon or the machine went down during the run; the next run resumes it.
    Interrupted,
}

impl fmt::Display for RunOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Stopped => "stopped",
            Self::Canceled => "canceled",
            Self::Failed => "failed",
            Self::Deferred => "deferred",
            Self::Interrupted => "interrupted",
        })
    }
}

/// One run: a sync of a job that is running or has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    /// The number of the run; the runs of a job are counted from 1.
    pub number: u64,
    /// What started the run.
    pub run_type: RunType,
    /// When the run started.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// When the run ended. Absent while it is running.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished: Option<Timestamp>,
    /// How long the run took, in seconds, measured by a monotonic clock. Absent while it is running.
    pub seconds: Option<f64>,
    /// How the run ended.
    pub outcome: RunOutcome,
    /// The image that the run created, for example `web01/8`. Absent if it created none.
    pub image: Option<String>,
    /// The kind of sync: `full` or `incremental`.
    pub kind: Option<String>,
    /// How changes were found: `full` (everything was stored), `scan` (a whole disk was read and compared) or
    /// `tracked` (the kernel's block layer was watched).
    pub method: Option<String>,
    /// The consistency class of the image: `fuzzy` (read while writes went on), `crash` (like after a power cut),
    /// `filesystem` (filesystems were frozen) or `offline` (nothing used the disks).
    pub consistency: Option<String>,
    /// Why the image has this consistency class and no better one.
    pub consistency_reason: Option<String>,
    /// Whether everything was compared after the run, by reading the disks and the image, and is the same. Absent if it was not
    /// asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<bool>,
    /// What the run did to have all disks at one instant. Absent if that was not wanted, and in runs of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instant: Option<RunInstant>,
    /// Whether this run resumed an unfinished one.
    pub resumed: bool,
    /// The bytes read and compared, of all disks together.
    pub compared_bytes: u64,
    /// The bytes that differed from the previous image.
    pub dirty_bytes: u64,
    /// The bytes stored, after compression.
    pub stored_bytes: u64,
    /// The average rate of comparing, in bytes per second.
    pub compare_rate_bytes: u64,
    /// The disks of the image, with the figures of each.
    pub disks: Vec<RunDisk>,
    /// What the run has sent to its target. Absent with a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<RunTransfer>,
    /// The images deleted after this run because of `max_images`, for example `web01/3`.
    pub deleted: Vec<String>,
    /// Why the run failed or was deferred. Absent if it was neither.
    pub error: Option<String>,
    /// Other things to know about this run, one sentence each.
    pub warnings: Vec<String>,
}

/// What a run has sent to its target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunTransfer {
    /// The bytes sent, those included that were sent again after a connection was lost.
    pub sent_bytes: u64,
    /// The bytes given to connections that were lost: the most that was sent twice.
    pub sent_again_bytes: u64,
    /// How long the run has waited for the target, in seconds.
    pub waited_seconds: f64,
}

/// One disk of a run's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunDisk {
    /// The disk's name in the job, for example `vda`.
    pub name: String,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// How the changes of this disk were found: `full`, `scan` or `tracked`. Absent in runs of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Why they were found that way, as a clause. Absent in runs of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method_reason: Option<String>,
    /// The bytes of this disk that were read and compared.
    pub compared_bytes: u64,
    /// The bytes among those compared that the tracker had called unchanged: they were read to check it. 0 if the sync
    /// was not tracked.
    #[serde(default)]
    pub audited_bytes: u64,
    /// The bytes of this disk that differed from the previous image.
    pub dirty_bytes: u64,
    /// The bytes stored for this disk, after compression.
    pub stored_bytes: u64,
    /// The clusters of this disk that were damaged in the previous image and were stored anew: they are good in this
    /// image. 0 if there was no damage, or none was known.
    #[serde(default)]
    pub repaired_clusters: u64,
    /// The clusters of this disk of which sectors could not be read from it, now or earlier: readers of the image get an error
    /// there. 0 if all of it could be read.
    #[serde(default)]
    pub unreadable_clusters: u64,
    /// The digest of the disk's content, in the form that `smc-image digest` prints: `smc1-64k:` and 64 hexadecimal
    /// digits. Absent if it is not known: only those who have the key know the digests of an encrypted image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A forecast from measured rates: how long the last sync would take if services were stopped now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Forecast {
    /// The expected duration of the whole last sync, in seconds.
    pub seconds: f64,
    /// The expected time to read and compare all disks, in seconds.
    pub compare_seconds: f64,
    /// The expected time to store what changed since the last image, in seconds. It overlaps with comparing.
    pub transfer_seconds: f64,
    /// The expected time for hooks, committing the image and deleting old images, in seconds.
    pub other_seconds: f64,
    /// The bytes to read and compare, of all disks together.
    pub compare_bytes: u64,
    /// The bytes expected to have changed since the last image.
    pub dirty_bytes: u64,
    /// The rate of comparing in the last sync, in bytes per second.
    pub compare_rate_bytes: u64,
    /// The rate at which changes are expected to be stored, in bytes of changed data per second.
    pub transfer_rate_bytes: u64,
    /// The rate of change between the last two syncs, in bytes per second.
    pub dirty_rate_bytes: u64,
    /// How long writers would be held while the filesystems are frozen, in milliseconds: the longest time of the last syncs that
    /// froze. Absent if the job freezes nothing, or none of them has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writers_held_ms: Option<u64>,
    /// What the figures are based on, as text.
    pub basis: String,
}
