//! Jobs: the requests that create, change and complete them, and the answer that describes one.

use crate::checks::{ChecksRequest, ChecksView};
use crate::consistency::LeastConsistency;
use crate::priority::IoPriority;
use crate::rules::Status;
use crate::run::{Forecast, Progress, RunView};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// How the changes of a job's disks are found.
///
/// - `auto`: the disks are tracked where the machine can, and otherwise read completely.
/// - `off`: every sync reads the disks completely.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tracking {
    /// The disks are tracked where the machine can, and otherwise read completely.
    #[default]
    Auto,
    /// Every sync reads the disks completely.
    Off,
}

impl fmt::Display for Tracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Off => "off",
        })
    }
}

/// What becomes of sectors of a disk that cannot be read.
///
/// - `stop`: the sync fails and names the first of them.
/// - `skip`: the image records them as unreadable and has everything else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnReadError {
    /// The sync fails and names the first of them.
    #[default]
    Stop,
    /// The image records them as unreadable and has everything else.
    Skip,
}

impl fmt::Display for OnReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stop => "stop",
            Self::Skip => "skip",
        })
    }
}

/// A request to create a job. It needs a name, and either `disks` or `all_disks`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJob {
    /// The job's name: 2 to 64 letters, digits, `.`, `_` and `-`, starting with a letter and not ending in `.json` or
    /// `.tmp`. It cannot be changed: the job's images are called NAME/1, NAME/2 and so on. Example: `web01`.
    #[schema(min_length = 2, max_length = 64, pattern = "^[A-Za-z][A-Za-z0-9._-]*$")]
    pub name: String,
    /// A description for people, on one line: at most 128 characters. Default: empty.
    #[serde(default)]
    #[schema(max_length = 128)]
    pub description: String,
    /// A token that makes the request safe to repeat: 1 to 64 printable ASCII characters without spaces. If a request
    /// with this token has created a job before, that job is returned and no second one is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub client_token: Option<String>,
    /// The directory of the store, as an absolute path. It is created if it does not exist. Default: the store in the
    /// daemon's configuration. Example: `/mnt/images/store`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// The name of the target that the images go to, in place of a store: another machine, where smc-store runs and which this one
    /// has been enrolled at. It decides itself how many images it keeps. Forbidden with `store`,
    /// `max_images`, `checks`, `take_over` and `allow_network_fs`. Example: `backup`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The disks of the job: at most 64. Leave it empty if `all_disks` is true. A disk can belong to only one unfinished
    /// job.
    #[serde(default)]
    pub disks: Vec<DiskRequest>,
    /// Include every disk of this machine that can be migrated; `GET /v1/disks` lists them. Default: false.
    #[serde(default)]
    pub all_disks: bool,
    /// Whether incremental syncs follow the full one. If false, the job is Finished after a single full sync.
    pub automatic_incremental: bool,
    /// The time from the end of one sync to the start of the next, in seconds: 3600 (1 h) to 604800 (7 d); from 60 (1 min)
    /// where the job's disks are tracked. The daemon's configuration may lower the minimum. Required if `automatic_incremental` is true, forbidden otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub interval_seconds: Option<u64>,
    /// The number of images to keep: 1 to 10. After each sync, the oldest images beyond it that are not in use are
    /// deleted. Required if `automatic_incremental` is true and there is no `target`, forbidden otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10)]
    pub max_images: Option<u32>,
    /// When the job starts by itself: a time within the next 30 days. Default: the job waits for the `start` action.
    /// Example: `2026-11-24T03:00:00Z`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub start_at: Option<Timestamp>,
    /// How long the job may stay unfinished, in seconds from its creation: 604800 (7 d) to 7776000 (90 d). After that
    /// time it is Expired. Default: 2592000 (30 d).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 604_800, maximum = 7_776_000)]
    pub valid_seconds: Option<u64>,
    /// Which checks to make of the images beside the syncs. Default: none.
    #[serde(default, skip_serializing_if = "ChecksRequest::is_empty")]
    pub checks: ChecksRequest,
    /// The zstd compression level, 0 to 19; 0 means no compression. Default: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 19)]
    pub compress_level: Option<i32>,
    /// The limit of reading from all disks together, in bytes per second: at least 65536 (64 KiB/s), or 0 for no limit.
    /// Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit_bytes: Option<u64>,
    /// The limit of what is sent to the target, by the local time of day: bytes per second, or `unlimited`, and then parts of the day
    /// with a limit of their own. Only with `target`. Default: no limit. Example: `20MiB, 22:00-06:00 unlimited`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_limit: Option<String>,
    /// The I/O priority of reads from the disks, as for ionice(1): `none`, `idle` (other reads and writes come first), or
    /// `best-effort:0` (first) to `best-effort:7` (last). The I/O schedulers bfq and mq-deadline honour it. Default: `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^(none|idle|best-effort(:[0-7])?)$")]
    pub io_priority: Option<IoPriority>,
    /// How changes are found: `auto` (the disks are tracked where the machine can, so that a sync reads only what was
    /// written to) or `off` (every sync reads the disks completely). Default: `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// The least time from the start of one scheduled sync that reads a whole disk to the start of the next, in seconds: 60 (1 min) to
    /// 604800 (7 d). It matters only where `interval_seconds` is shorter: the job then waits if its disks cannot be
    /// tracked for some time. Default: 3600 (1 h).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 60, maximum = 604_800)]
    pub min_scan_interval_seconds: Option<u64>,
    /// The cluster size, the unit of comparison and storage, in bytes: 16384, 65536 or 262144. Forbidden with `take_up`:
    /// the job then has the cluster size of the job it continues. Default: 65536 (64 KiB).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16_384, maximum = 262_144)]
    pub cluster_size_bytes: Option<u32>,
    /// A program to run before every sync: the absolute path of an executable file, without arguments. If the program
    /// fails, the sync fails before it reads a disk. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_hook: Option<String>,
    /// A program to run after every sync, whether that succeeded or not: the absolute path of an executable file,
    /// without arguments. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_hook: Option<String>,
    /// How long each hook but the freeze hooks may run before it is killed, in seconds: 1 to 3600 (1 h). Default: 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3600)]
    pub hook_timeout_seconds: Option<u64>,
    /// A program to run just before the filesystems are frozen, so that a database can write what it holds and pause: the
    /// absolute path of an executable file, without arguments. If the program fails or takes too long, nothing is frozen. It
    /// runs only where the sync freezes. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_hook: Option<String>,
    /// A program to run when nothing is frozen any more, always after `freeze_hook`, whatever became of that: the absolute path
    /// of an executable file, without arguments. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thaw_hook: Option<String>,
    /// How long each freeze hook may run before it is killed, in seconds: 1 to 60 (1 min). Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 60)]
    pub freeze_hook_timeout_seconds: Option<u64>,
    /// The name of a finished, canceled or expired job to continue. The first sync is incremental on that job's newest
    /// image. Store and disk names must be the same. Default: none, and the first sync is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take_up: Option<String>,
    /// Accept, for the next image only, a disk whose serial number, WWN, UUID or backing file differs from the one
    /// recorded in the images. Default: false, and such a disk is refused.
    #[serde(default)]
    pub accept_changed_disk: bool,
    /// What becomes of sectors that cannot be read: `stop` (the sync fails and names them) or `skip` (the image records them
    /// as unreadable and has everything else: for a disk that is failing). Default: `stop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_read_error: Option<OnReadError>,
    /// The consistency class that images are to have at least: `any`, `crash` or `filesystem`. An image below it is kept, as it is a
    /// good base for the next sync, and the run has a warning. With `filesystem`, the sync freezes the filesystems for a moment,
    /// where that is possible. Default: `any`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<LeastConsistency>,
    /// Whether a sync whose image has not the class that `consistency` wants fails. The image is kept all the same. Default:
    /// false, and the run has a warning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_consistency: bool,
    /// How long a sync may hold writers so that the image has all disks at one instant, in milliseconds: 10 to 10000 (10 s), or
    /// 0 to freeze nothing. Default: 200 with `consistency` = `filesystem`, otherwise 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 10_000)]
    pub freeze_budget_ms: Option<u64>,
    /// Take over, with the first image, images that belong to another machine or to a job that is not known to be over.
    /// The machine or job that wrote them until now is refused from then on. Default: false, and such images are refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_over: bool,
    /// Allow creating a new store on NFS, CIFS, FUSE or a similar filesystem, which may not keep locks and durability
    /// guarantees. Default: false.
    #[serde(default)]
    pub allow_network_fs: bool,
}

/// A disk of a new job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskRequest {
    /// The absolute path of the block device or regular file. Example: `/dev/vda`.
    pub path: String,
    /// The disk's name in the job and its images. Default: the name of the device, for example `vda`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A request to change parameters of a job. Absent fields stay as they are. If one value is wrong, nothing is changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModifyJob {
    /// The new description: at most 128 characters, on one line. Takes effect immediately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 128)]
    pub description: Option<String>,
    /// The new limit of reading from all disks together, in bytes per second: at least 65536 (64 KiB/s), or 0 for no
    /// limit. Takes effect immediately, also on a running sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit_bytes: Option<u64>,
    /// The new limit of what is sent to the target, for example `20MiB, 22:00-06:00 unlimited`, or `unlimited`. Takes effect immediately,
    /// also on a running sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_limit: Option<String>,
    /// The new I/O priority of reads from the disks: `none`, `idle`, or `best-effort:0` (first) to `best-effort:7` (last).
    /// Takes effect immediately, also on a running sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^(none|idle|best-effort(:[0-7])?)$")]
    pub io_priority: Option<IoPriority>,
    /// The new time from the end of one sync to the start of the next, in seconds: 3600 (1 h) to 604800 (7 d); from 60
    /// (1 min) where the job's disks are tracked. Takes effect when the next sync has ended; in state Ready immediately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub interval_seconds: Option<u64>,
    /// The new number of images to keep: 1 to 10. Takes effect when the next sync has ended; in state Ready immediately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10)]
    pub max_images: Option<u32>,
    /// The new way to find changes: `auto` or `off`. Takes effect with the next sync; `off` stops the tracking of the
    /// disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// The new least time between two scheduled syncs that read a whole disk, in seconds: 60 (1 min) to 604800 (7 d).
    /// Takes effect immediately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 60, maximum = 604_800)]
    pub min_scan_interval_seconds: Option<u64>,
    /// Which checks to make of the images beside the syncs. Takes effect immediately.
    #[serde(default, skip_serializing_if = "ChecksRequest::is_empty")]
    pub checks: ChecksRequest,
    /// The new zstd compression level, 0 to 19; 0 means no compression. Takes effect with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 19)]
    pub compress_level: Option<i32>,
    /// The new program to run before every sync: an absolute path, or an empty string to remove the hook. Takes effect
    /// with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_hook: Option<String>,
    /// The new program to run after every sync: an absolute path, or an empty string to remove the hook. Takes effect
    /// with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_hook: Option<String>,
    /// How long each hook but the freeze hooks may run before it is killed, in seconds: 1 to 3600 (1 h). Takes effect with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3600)]
    pub hook_timeout_seconds: Option<u64>,
    /// The new program to run just before the filesystems are frozen: an absolute path, or an empty string to remove the hook.
    /// Takes effect with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_hook: Option<String>,
    /// The new program to run when nothing is frozen any more: an absolute path, or an empty string to remove the hook. Takes
    /// effect with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thaw_hook: Option<String>,
    /// How long each freeze hook may run before it is killed, in seconds: 1 to 60 (1 min). Takes effect with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 60)]
    pub freeze_hook_timeout_seconds: Option<u64>,
    /// The new time at which the job starts by itself, within the next 30 days. It can be changed in state Ready only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub start_at: Option<Timestamp>,
    /// The new valid time, in seconds from the job's creation: 604800 (7 d) to 7776000 (90 d). Takes effect immediately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 604_800, maximum = 7_776_000)]
    pub valid_seconds: Option<u64>,
    /// Accept, for the next image only, a disk whose serial number, WWN, UUID or backing file differs from the one
    /// recorded in the images. `false` withdraws the permission. Takes effect with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_changed_disk: Option<bool>,
    /// What becomes of sectors that cannot be read from now on: `stop` or `skip`. Takes effect with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_read_error: Option<OnReadError>,
    /// The new class that images are to have at least: `any`, `crash` or `filesystem`. Takes effect with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<LeastConsistency>,
    /// Whether a sync whose image has not that class fails from now on. Takes effect with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_consistency: Option<bool>,
    /// How long a sync may hold writers from now on, in milliseconds: 10 to 10000 (10 s), or 0 to freeze nothing. Takes effect
    /// with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 10_000)]
    pub freeze_budget_ms: Option<u64>,
    /// Take over, with the next image, images that belong to another machine or to another job of this name. `false`
    /// withdraws the permission. Takes effect with the next sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take_over: Option<bool>,
}

/// A request to complete a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompleteJob {
    /// Run one last sync first. Default: false, and the job is Finished immediately.
    #[serde(default)]
    pub last_sync: bool,
    /// Compare everything after the last sync, by reading the disks and the image, and finish the job only if it is the same.
    /// Otherwise the job is InError, and `start` repeats the last sync. Only with `last_sync`. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify: bool,
}

/// The current state of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// The job's name, for example `web01`.
    pub name: String,
    /// The description for people; may be empty.
    pub description: String,
    /// The state of the job.
    pub status: Status,
    /// The action that is ending the running sync: `stop` or `cancel`. Absent if none was requested.
    pub ending: Option<String>,
    /// Whether the running or next sync is the last one, after which the job is Finished.
    pub completing: bool,
    /// Whether the last sync is compared with its image before the job is Finished.
    #[serde(default)]
    pub verifying: bool,
    /// Why the job is InError, or why the images of a job that is Deleting cannot be deleted yet. Usually absent.
    pub error: Option<String>,
    /// Problems that need attention, one sentence each.
    pub warnings: Vec<String>,
    /// Whether the job was found in a store without proof that this machine wrote it. It starts no sync before the `confirm`
    /// action.
    #[serde(default)]
    pub unconfirmed: bool,
    /// What happens next without user action, and when.
    pub next: NextEvent,
    /// The progress of the running sync. Absent if no sync is running.
    pub progress: Option<Progress>,
    /// How long the last sync would take if services were stopped now. Absent until earlier syncs
    /// have provided the figures, and for jobs that will not sync again.
    pub forecast: Option<Forecast>,
    /// The directory of the store. Absent if the images go to a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// The name of the target that the images go to. Absent if they go into a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The disks of the job.
    pub disks: Vec<DiskView>,
    /// Whether incremental syncs follow the full one. If false, the job is a single full sync.
    pub automatic_incremental: bool,
    /// The current time from the end of one sync to the start of the next, in seconds. Absent if the job has no
    /// schedule.
    pub interval_seconds: Option<u64>,
    /// The current number of images to keep. Absent if the job has no schedule, or a target, which decides itself.
    pub max_images: Option<u32>,
    /// Values that were changed and take effect when the next sync has ended.
    pub pending: PendingView,
    /// The zstd compression level, 0 to 19; 0 means no compression.
    pub compress_level: i32,
    /// The limit of reading from all disks together, in bytes per second; 0 means no limit.
    pub bandwidth_limit_bytes: u64,
    /// The limit of what is sent to the target, by the local time of day. Absent if there is none, and with a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_limit: Option<String>,
    /// The I/O priority of reads from the disks: `none`, `idle`, or `best-effort:0` (first) to `best-effort:7` (last).
    #[serde(default)]
    #[schema(value_type = String)]
    pub io_priority: IoPriority,
    /// Which disks `io_priority` has no effect on, and why. Absent if there are none, if it is `none`, and in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_priority_note: Option<String>,
    /// How changes are found: `auto` or `off`.
    #[serde(default)]
    pub tracking: Tracking,
    /// The least time between two scheduled syncs that read a whole disk, in seconds.
    #[serde(default)]
    pub min_scan_interval_seconds: u64,
    /// The checks that are made of the images beside the syncs, and what the last ones found.
    #[serde(default)]
    pub checks: ChecksView,
    /// The cluster size in bytes. Absent for a job that continues another one, until its first sync has determined it.
    pub cluster_size_bytes: Option<u32>,
    /// Whether the next sync accepts a disk whose identity differs from the recorded one. Creating an image resets it.
    #[serde(default)]
    pub accept_changed_disk: bool,
    /// What becomes of sectors that cannot be read: `stop` or `skip`.
    #[serde(default)]
    pub on_read_error: OnReadError,
    /// The consistency class that images are to have at least.
    #[serde(default)]
    pub consistency: LeastConsistency,
    /// Whether a sync whose image has not that class fails.
    #[serde(default)]
    pub require_consistency: bool,
    /// How long a sync may hold writers, in milliseconds. Absent if it freezes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_budget_ms: Option<u64>,
    /// Whether the next sync takes over images that belong to another machine or job. Creating an image resets it.
    #[serde(default)]
    pub take_over: bool,
    /// The programs that run around every sync.
    pub hooks: HooksView,
    /// The name of the job that this one continues. Absent if there is none.
    pub take_up: Option<String>,
    /// When the job was created.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When the job starts by itself. Absent if no time was set.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub start_at: Option<Timestamp>,
    /// How long the job may stay unfinished, in seconds from its creation.
    pub valid_seconds: u64,
    /// When the job expires if it is still unfinished then. Absent once the job cannot expire any more.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires: Option<Timestamp>,
    /// The job's images, oldest first, for example `web01/7`. The list is updated after each sync and, of a
    /// job with a store, once a minute.
    pub images: Vec<String>,
    /// The newest run. Absent before the first one.
    pub last_run: Option<RunView>,
}

/// A disk of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskView {
    /// The disk's name in the job, for example `vda`.
    pub name: String,
    /// The path of the block device or file.
    pub path: String,
    /// The disk's size in bytes when the job was created, or at its last sync.
    pub size_bytes: u64,
    /// Whether the tracker watches the disk, and what it has seen. Absent in lists, and for jobs that will not sync again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<DiskTracking>,
}

/// Whether a disk is tracked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskTracking {
    /// Whether the next sync reads only what was written to, if nothing changes until then.
    pub trusted: bool,
    /// Why the next sync reads all of the disk, as a clause. Absent if it does not.
    pub doubt: Option<String>,
    /// Since when the tracker watches the disk. Absent if it does not.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// The bytes in clusters that were written to since the newest image, as far as is known. 0 if the disk is not
    /// watched.
    pub dirty_bytes: u64,
}

/// Values that were changed and take effect when the next sync has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingView {
    /// The future interval, in seconds. Absent if it does not change.
    pub interval_seconds: Option<u64>,
    /// The future number of images to keep. Absent if it does not change.
    pub max_images: Option<u32>,
}

/// The programs that run around every sync of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HooksView {
    /// The path of the program that runs before every sync. Absent if there is none.
    pub pre: Option<String>,
    /// The path of the program that runs after every sync. Absent if there is none.
    pub post: Option<String>,
    /// The path of the program that runs just before the filesystems are frozen. Absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<String>,
    /// The path of the program that runs when nothing is frozen any more. Absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thaw: Option<String>,
    /// How long each freeze hook may run before it is killed, in seconds.
    #[serde(default)]
    pub freeze_timeout_seconds: u64,
    /// How long each other program may run before it is killed, in seconds.
    pub timeout_seconds: u64,
}

/// What happens to a job without user action.
///
/// - `start`: the job starts, at `start_at`.
/// - `sync`: an incremental sync starts.
/// - `run_ends`: the running sync ends.
/// - `expire`: the job expires.
/// - `nothing`: nothing happens until a user acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The job starts, at `start_at`.
    Start,
    /// An incremental sync starts.
    Sync,
    /// The running sync ends, and the job becomes Waiting, Finished or InError.
    RunEnds,
    /// The job expires.
    Expire,
    /// Nothing happens until a user acts.
    Nothing,
}

/// What happens next to a job, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NextEvent {
    /// What happens next.
    pub event: Event,
    /// When it happens, by the current wall clock. Absent if that is not known.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// In how many seconds it happens. Absent if that is not known.
    pub in_seconds: Option<u64>,
    /// The same as a sentence for people.
    pub text: String,
    /// Why the next sync was deferred: it was due already. Absent if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deferred: Option<String>,
}
