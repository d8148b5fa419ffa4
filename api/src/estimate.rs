//! How long a job would take and how much space it needs, measured before it starts.

use crate::job::DiskRequest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A request for an estimate. It needs either `disks` or `all_disks`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EstimateRequest {
    /// The disks to measure. Leave it empty if `all_disks` is true.
    #[serde(default)]
    pub disks: Vec<DiskRequest>,
    /// Measure every disk of this machine that can be migrated. Default: false.
    #[serde(default)]
    pub all_disks: bool,
    /// Directory of the store, as an absolute path. Default: the store in the daemon's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// The name of the target that the images would go to, in place of a store. The way to it is tried by sending it noise, which
    /// it does not keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// zstd compression level to try, 0 to 19; 0 means no compression. Default: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 19)]
    pub compress_level: Option<i32>,
    /// How many seconds to read from each disk, and to write to the store or to send to the target: 1 to 30. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 30)]
    pub seconds: Option<u32>,
}

/// How long a full and an incremental sync would take, and how much space the full one needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    /// What was measured of each disk.
    pub disks: Vec<DiskEstimate>,
    /// What was measured of the store. Absent with a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreEstimate>,
    /// What was measured of the target. Absent with a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetEstimate>,
    /// The size of all disks together, in bytes.
    pub total_bytes: u64,
    /// The bytes that the full sync is expected to store.
    pub stored_bytes: u64,
    /// The expected duration of the full sync, in seconds.
    pub full_seconds: f64,
    /// The expected duration of an incremental sync, in seconds: the time to read all disks, or to store what
    /// changes in an hour, whichever is longer.
    pub incremental_seconds: f64,
    /// The bytes written to the disks in an hour, on average since boot: an upper bound of what changes. Absent if
    /// the kernel does not count them, as for a regular file.
    pub written_per_hour_bytes: Option<u64>,
    /// Whether the store or target has enough free space for the full sync.
    pub fits: bool,
    /// What the figures are based on, and what they do not include; one sentence each.
    pub notes: Vec<String>,
}

/// What was measured of one disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskEstimate {
    /// The disk's name in the job, for example `vda`.
    pub name: String,
    /// The path of the device, for example `/dev/vda`.
    pub path: String,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// The measured read rate, in bytes per second.
    pub read_rate_bytes: u64,
    /// The bytes read for the measurement.
    pub sampled_bytes: u64,
    /// The share of the sample that is all zeros and takes no space in the store, 0 to 1.
    pub zero_share: f64,
    /// The compression ratio of the rest: stored bytes for each byte of data, 0 to 1.
    pub compressed_share: f64,
}

/// What was measured of the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TargetEstimate {
    /// The name of the target.
    pub name: String,
    /// The measured rate of sending to it, in bytes per second.
    pub send_rate_bytes: u64,
    /// The bytes that are free for this machine there: on its disk, or what its quota leaves.
    pub free_bytes: u64,
}

/// What was measured of the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreEstimate {
    /// The store's directory.
    pub path: String,
    /// The measured write rate, including the final sync to disk, in bytes per second.
    pub write_rate_bytes: u64,
    /// The free space, in bytes.
    pub free_bytes: u64,
}
