//! Jobs: how they are asked for and what is told of them.

use crate::rules::Status;
use crate::run::{Forecast, Progress, RunView};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for a new job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJob {
    /// Its name: 2 to 64 letters, digits, `.`, `_` and `-`, starting with a letter. Its images are NAME/1 and so on.
    #[schema(min_length = 2, max_length = 64, pattern = "^[A-Za-z][A-Za-z0-9._-]*$")]
    pub name: String,
    /// Whatever helps people, at most 128 characters.
    #[serde(default)]
    #[schema(max_length = 128)]
    pub description: String,
    /// At most 64 ASCII characters: a repeated request with the same token is answered with the same job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub client_token: Option<String>,
    /// Directory of the store; the configured one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// The disks. With `all_disks`, none.
    #[serde(default)]
    pub disks: Vec<DiskRequest>,
    /// Every disk of this machine that can be migrated (`GET /v1/disks` tells which and why).
    #[serde(default)]
    pub all_disks: bool,
    /// Whether incremental syncs follow the full one. Without, the job is a single full sync.
    pub automatic_incremental: bool,
    /// From the end of a sync to the start of the next: 1 h to 7 d. Needed with `automatic_incremental`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub interval_seconds: Option<u64>,
    /// Images kept: 1 to 10. Needed with `automatic_incremental`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10)]
    pub max_images: Option<u32>,
    /// When to start by itself, within 30 days; absent: when told to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub start_at: Option<Timestamp>,
    /// How long the job may stay unfinished: 7 to 90 d, 30 d if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 604_800, maximum = 7_776_000)]
    pub valid_seconds: Option<u64>,
    /// zstd level 0 to 19, 4 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 19)]
    pub compress_level: Option<i32>,
    /// Bytes a second of reading; 0 or absent is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit_bytes: Option<u64>,
    /// 16 KiB, 64 KiB or 256 KiB; 64 KiB if absent. A job that takes up another one has that one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16_384, maximum = 262_144)]
    pub cluster_size_bytes: Option<u32>,
    /// Program run before every sync; if it fails, the sync does not begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_hook: Option<String>,
    /// Program run after every sync, however that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_hook: Option<String>,
    /// How long each hook may run: 1 s to 1 h, 60 s if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3600)]
    pub hook_timeout_seconds: Option<u64>,
    /// The finished job whose newest image the first sync builds on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take_up: Option<String>,
    /// Go on although a disk's serial number, WWN or backing file is not the one that the images know.
    #[serde(default)]
    pub accept_changed_disk: bool,
    /// Make a new store on NFS, CIFS, FUSE or the like.
    #[serde(default)]
    pub allow_network_fs: bool,
}

/// A disk of a new job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskRequest {
    /// The device or file.
    pub path: String,
    /// Its name in the job; the device's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Changes parameters of a job; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModifyJob {
    /// Counts at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 128)]
    pub description: Option<String>,
    /// Counts at once, while a sync runs too; 0 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit_bytes: Option<u64>,
    /// Counts after the next sync has ended; in Ready at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub interval_seconds: Option<u64>,
    /// Counts after the next sync has ended; in Ready at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10)]
    pub max_images: Option<u32>,
    /// For the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 19)]
    pub compress_level: Option<i32>,
    /// For the next sync; an empty one is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_hook: Option<String>,
    /// For the next sync; an empty one is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_hook: Option<String>,
    /// For the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3600)]
    pub hook_timeout_seconds: Option<u64>,
    /// In Ready only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub start_at: Option<Timestamp>,
    /// Counted from the job's creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 604_800, maximum = 7_776_000)]
    pub valid_seconds: Option<u64>,
    /// Go on although a disk is not the one that the images know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_changed_disk: Option<bool>,
}

/// Finishes a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompleteJob {
    /// Sync once more before.
    #[serde(default)]
    pub last_sync: bool,
}

/// A job, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// Its state.
    pub status: Status,
    /// While Running: what was asked of it meanwhile and is being done (`stop`, `cancel`).
    pub ending: Option<String>,
    /// Whether the sync that runs, or the next one, is the last, and the job Finished after it.
    pub completing: bool,
    /// Why it is InError.
    pub error: Option<String>,
    /// What the user should know and nothing has been done about.
    pub warnings: Vec<String>,
    /// What happens next, and when.
    pub next: NextEvent,
    /// How far the running sync is.
    pub progress: Option<Progress>,
    /// If services were stopped now: how long the last sync would take.
    pub forecast: Option<Forecast>,
    /// Directory of the store.
    pub store: String,
    /// The disks.
    pub disks: Vec<DiskView>,
    /// Whether incremental syncs follow the full one.
    pub automatic_incremental: bool,
    /// In force.
    pub interval_seconds: Option<u64>,
    /// In force.
    pub max_images: Option<u32>,
    /// What counts after the next sync.
    pub pending: PendingView,
    /// zstd level.
    pub compress_level: i32,
    /// Bytes a second of reading; 0 is no limit.
    pub bandwidth_limit_bytes: u64,
    /// Cluster size; absent until it is known for a job that takes up another one.
    pub cluster_size_bytes: Option<u32>,
    /// Whether the next sync takes a disk that is not the one that the job knows; an image that is made ends it.
    #[serde(default)]
    pub accept_changed_disk: bool,
    /// Programs run around syncs.
    pub hooks: HooksView,
    /// The job that this one continues.
    pub take_up: Option<String>,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When it starts by itself.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub start_at: Option<Timestamp>,
    /// How long it may stay unfinished.
    pub valid_seconds: u64,
    /// When it expires if it is still unfinished.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires: Option<Timestamp>,
    /// Its images in the store, oldest first, as `web01/7`.
    pub images: Vec<String>,
    /// The newest run.
    pub last_run: Option<RunView>,
}

/// A disk of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskView {
    /// Its name in the job.
    pub name: String,
    /// The device or file.
    pub path: String,
    /// Size when the job was created, or at its last sync.
    pub size_bytes: u64,
}

/// What was modified and counts after the next sync.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingView {
    /// The interval to come.
    pub interval_seconds: Option<u64>,
    /// The number of images to come.
    pub max_images: Option<u32>,
}

/// Programs run around syncs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HooksView {
    /// Before.
    pub pre: Option<String>,
    /// After.
    pub post: Option<String>,
    /// How long each may run.
    pub timeout_seconds: u64,
}

/// What happens to a job by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It starts.
    Start,
    /// An incremental sync.
    Sync,
    /// It becomes Waiting, Finished or whatever the running sync leads to.
    RunEnds,
    /// It expires.
    Expire,
    /// Nothing, until somebody acts.
    Nothing,
}

/// What happens next to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NextEvent {
    /// What.
    pub event: Event,
    /// When, by the wall clock as it is now.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// In how many seconds.
    pub in_seconds: Option<u64>,
    /// In words.
    pub text: String,
}
