//! The states of a job and the actions that each allows: one table, which the daemon enforces, the documentation
//! repeats and the tests compare.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Status {
    /// Created; nothing has been synced.
    Ready,
    /// A sync is going on.
    Running,
    /// Between two syncs.
    Waiting,
    /// The user stopped it.
    Stopped,
    /// The last sync failed; `start` goes on with it.
    InError,
    /// Complete: no more syncs.
    Finished,
    /// The user gave it up.
    Canceled,
    /// Its valid time passed.
    Expired,
    /// Its images are being deleted, and then it is gone.
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

    /// Whether the job may sync again: its disks belong to it until it does not.
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

/// What can be asked of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Begin, or go on after a stop or an error.
    Start,
    /// An incremental sync now.
    Sync,
    /// Another interval or number of images.
    ModifySchedule,
    /// Other parameters of the next sync: compression, hooks, start and valid time.
    ModifySync,
    /// Another description or bandwidth limit, which count at once.
    ModifyAny,
    /// Stop syncing; `start` goes on.
    Stop,
    /// Give the job up; its images stay.
    Cancel,
    /// Finish the job, after a last sync if asked for.
    Complete,
    /// Begin a new job on this one's newest image.
    TakeUp,
    /// Forget the job, and its images if asked for.
    Delete,
}

impl Action {
    /// All actions, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Sync,
        Self::ModifySchedule,
        Self::ModifySync,
        Self::ModifyAny,
        Self::Stop,
        Self::Cancel,
        Self::Complete,
        Self::TakeUp,
        Self::Delete,
    ];

    /// As the documentation and messages name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Sync => "sync",
            Self::ModifySchedule => "modify interval or max_images",
            Self::ModifySync => "modify compression, hooks, start_at or valid_time",
            Self::ModifyAny => "modify description or bandwidth_limit",
            Self::Stop => "stop",
            Self::Cancel => "cancel",
            Self::Complete => "complete",
            Self::TakeUp => "be taken up by a new job",
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
            Self::Stop => &[Running, Waiting],
            // Expired is not in the design: the images of a job that ran out of time would be of no more use.
            Self::TakeUp => &[Finished, Canceled, Expired],
            // From Deleting it gives the purge up: a store that is gone for good must not keep its job.
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
