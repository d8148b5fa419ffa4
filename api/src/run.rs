//! Syncs of a job: the one that runs, those that ended, and the last one to come.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// What a running sync is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Phase {
    /// Hooks, opening disks and store.
    Preparing,
    /// Incremental: reading the disks and comparing them with the last image; what differs is stored meanwhile.
    Comparing,
    /// Full: reading and storing everything.
    Transferring,
    /// Making the image durable.
    Processing,
    /// Deleting images beyond the number kept, and the hooks afterwards.
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

/// How far a running sync is. Comparing is bound by the disk, storing by the change: both are told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// The image it makes, as `web01/8`; absent while Preparing.
    pub image: Option<String>,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// How long it has been running.
    pub elapsed_seconds: f64,
    /// The disk being read.
    pub disk: Option<String>,
    /// Bytes read and compared, of all disks.
    pub compared_bytes: u64,
    /// Bytes of all disks.
    pub total_bytes: u64,
    /// Of the bytes to compare, 0 to 100.
    pub percent: f64,
    /// Bytes a second compared, over the last seconds.
    pub compare_rate_bytes: u64,
    /// Bytes that differ from the last image so far.
    pub dirty_bytes: u64,
    /// Bytes stored for them, compressed.
    pub stored_bytes: u64,
    /// Bytes a second stored, over the last seconds.
    pub store_rate_bytes: u64,
    /// Until everything is compared, at the present rate.
    pub eta_seconds: Option<u64>,
    /// Whether it goes on with a sync that was not finished.
    pub resumed: bool,
}

/// Who asked for a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunType {
    /// A person.
    Manual,
    /// The schedule.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// It is going on.
    Running,
    /// It made an image.
    Succeeded,
    /// It was stopped; what it stored is kept for the next one.
    Stopped,
    /// It was given up.
    Canceled,
    /// It failed.
    Failed,
    /// The daemon ended in the middle; the next run goes on with it.
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
            Self::Interrupted => "interrupted",
        })
    }
}

/// One run of a job's sync.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    /// Counts a job's runs from 1.
    pub number: u64,
    /// Who asked for it.
    pub run_type: RunType,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished: Option<Timestamp>,
    /// How long it took, by a clock that does not jump.
    pub seconds: Option<f64>,
    /// How it ended.
    pub outcome: RunOutcome,
    /// The image it made, as `web01/8`.
    pub image: Option<String>,
    /// `full` or `incremental`.
    pub kind: Option<String>,
    /// How changes were found: `full`, `scan` or `tracked`.
    pub method: Option<String>,
    /// `fuzzy`, `crash`, `filesystem` or `offline`.
    pub consistency: Option<String>,
    /// Why the class is no better.
    pub consistency_reason: Option<String>,
    /// Whether it went on with a run that was not finished.
    pub resumed: bool,
    /// Bytes compared.
    pub compared_bytes: u64,
    /// Bytes that differed.
    pub dirty_bytes: u64,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Bytes a second compared, while it compared.
    pub compare_rate_bytes: u64,
    /// The disks of its image.
    pub disks: Vec<RunDisk>,
    /// Images deleted after it, as `web01/3`.
    pub deleted: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// What else there is to know.
    pub warnings: Vec<String>,
}

/// One disk of a run's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunDisk {
    /// Its name.
    pub name: String,
    /// Size.
    pub size_bytes: u64,
    /// Bytes compared.
    pub compared_bytes: u64,
    /// Bytes that differed.
    pub dirty_bytes: u64,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// As `smc-image digest` prints it.
    pub digest: String,
}

/// How long the last sync would take if services were stopped now, from what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Forecast {
    /// The whole last sync.
    pub seconds: f64,
    /// Reading and comparing all disks.
    pub compare_seconds: f64,
    /// Storing what changed since the last image; it happens while comparing.
    pub transfer_seconds: f64,
    /// Hooks, committing the image, deleting old ones.
    pub other_seconds: f64,
    /// Bytes to compare.
    pub compare_bytes: u64,
    /// Bytes expected to have changed.
    pub dirty_bytes: u64,
    /// Bytes a second compared in the last sync.
    pub compare_rate_bytes: u64,
    /// Bytes a second of changes stored.
    pub transfer_rate_bytes: u64,
    /// Bytes a second that changed between the last two syncs.
    pub dirty_rate_bytes: u64,
    /// What the figures rest on, in words.
    pub basis: String,
}
