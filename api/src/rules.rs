//! The states of a job and the actions that each allows: one table, which the daemon enforces, the documentation
//! repeats and the tests compare.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// The state of a job.
///
/// - `Ready`: created; no sync has started yet.
/// - `Running`: a sync is running.
/// - `Waiting`: between two syncs; the next one is scheduled.
/// - `Stopped`: stopped by the user; `start` resumes the job.
/// - `InError`: the last sync failed; `start` tries again.
/// - `Finished`: completed; there are no more syncs.
/// - `Canceled`: canceled by the user; its images remain.
/// - `Expired`: its valid time ended before it was completed; its images remain.
/// - `Deleting`: its images are being deleted, and then the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Status {
    /// Created; no sync has started yet.
    Ready,
    /// A sync is running.
    Running,
    /// Between two syncs; the next one is scheduled.
    Waiting,
    /// Stopped by the user; `start` resumes the job.
    Stopped,
    /// The last sync failed; `start` tries again.
    InError,
    /// Completed; there are no more syncs.
    Finished,
    /// Canceled by the user; its images remain.
    Canceled,
    /// Its valid time ended before it was completed.
    Expired,
    /// Its images are being deleted, and then the job.
    Deleting,
}

impl Status {
    /// All states, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Ready,
        Self::Running,
        Self::Waiting,
        Self::Stopped,
        Self::InError,
        Self::Finished,
        Self::Canceled,
        Self::Expired,
        Self::Deleting,
    ];

    /// Whether the job may still sync. No other job can use its disks until it is finished.
    pub fn is_unfinished(self) -> bool {
        matches!(
            self,
            Self::Ready | Self::Running | Self::Waiting | Self::Stopped | Self::InError
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "Ready",
            Self::Running => "Running",
            Self::Waiting => "Waiting",
            Self::Stopped => "Stopped",
            Self::InError => "InError",
            Self::Finished => "Finished",
            Self::Canceled => "Canceled",
            Self::Expired => "Expired",
            Self::Deleting => "Deleting",
        })
    }
}

/// An action on a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Start the job, or resume it after a stop or an error.
    Start,
    /// Run an incremental sync now.
    Sync,
    /// Change the interval or the number of images kept.
    ModifySchedule,
    /// Change parameters that apply from the next sync on: compression, hooks, start time, valid time.
    ModifySync,
    /// Change the description or the bandwidth limit, which take effect immediately.
    ModifyAny,
    /// Confirm a job that was found in a store without proof that this machine wrote it.
    Confirm,
    /// Stop syncing; `start` resumes.
    Stop,
    /// Cancel the job; its images remain.
    Cancel,
    /// Finish the job, optionally after one last sync.
    Complete,
    /// Continue this job's images in a new job.
    TakeUp,
    /// Delete the job, and its images if requested.
    Delete,
}

impl Action {
    /// All actions, in the order of the documentation.
    pub const ALL: [Self; 11] = [
        Self::Start,
        Self::Sync,
        Self::ModifySchedule,
        Self::ModifySync,
        Self::ModifyAny,
        Self::Confirm,
        Self::Stop,
        Self::Cancel,
        Self::Complete,
        Self::TakeUp,
        Self::Delete,
    ];

    /// The name of the action in messages and in the documentation.
    pub fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Sync => "sync",
            Self::ModifySchedule => "modify interval or max_images",
            Self::ModifySync => {
                "modify compression, tracking, on_read_error, consistency, hooks, start_at or valid_time"
            }
            Self::ModifyAny => {
                "modify description, bandwidth_limit, io_priority, min_scan_interval or checks"
            }
            Self::Confirm => "confirm",
            Self::Stop => "stop",
            Self::Cancel => "cancel",
            Self::Complete => "complete",
            Self::TakeUp => "continuing it in a new job",
            Self::Delete => "delete",
        }
    }

    /// The states in which it is allowed.
    pub fn allowed_from(self) -> &'static [Status] {
        use Status::{Canceled, Deleting, Expired, Finished, InError, Ready, Running, Stopped, Waiting};
        match self {
            Self::Start => &[Ready, Stopped, InError],
            Self::Sync | Self::Complete => &[Waiting],
            Self::ModifySchedule => &[Ready, Running, Waiting, Stopped],
            Self::ModifySync => &[Ready, Waiting, Stopped, InError],
            Self::ModifyAny | Self::Cancel => &[Ready, Running, Waiting, Stopped, InError],
            Self::Confirm => &[Stopped],
            Self::Stop => &[Running, Waiting],
            // Without Expired, nothing could build on the images of a job that ran out of time.
            Self::TakeUp => &[Finished, Canceled, Expired],
            // In Deleting it cancels the purge: a store that is gone for good must not keep its job.
            Self::Delete => &[
                Ready, Waiting, Stopped, InError, Finished, Canceled, Expired, Deleting,
            ],
        }
    }
}

/// Whether a job in `status` can be asked for `action`.
pub fn allowed(status: Status, action: Action) -> bool {
    action.allowed_from().contains(&status)
}
