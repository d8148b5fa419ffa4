//! What a job would cost, measured before it is begun.

use crate::job::DiskRequest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for an estimate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EstimateRequest {
    /// The disks.
    #[serde(default)]
    pub disks: Vec<DiskRequest>,
    /// Every disk that can be migrated.
    #[serde(default)]
    pub all_disks: bool,
    /// Directory of the store; the configured one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// zstd level, 4 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 19)]
    pub compress_level: Option<i32>,
    /// How long to read from each disk and write to the store; 2 if absent, at most 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 30)]
    pub seconds: Option<u32>,
}

/// What a full and an incremental sync would take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    /// The disks, as measured.
    pub disks: Vec<DiskEstimate>,
    /// The store, as measured.
    pub store: StoreEstimate,
    /// Bytes of all disks.
    pub total_bytes: u64,
    /// Bytes expected to be stored by the full sync.
    pub stored_bytes: u64,
    /// The full sync.
    pub full_seconds: f64,
    /// An incremental sync: as long as reading takes, or storing what changes in an hour.
    pub incremental_seconds: f64,
    /// Bytes written to the disks in an hour, on average since boot; the upper bound of what changes.
    pub written_per_hour_bytes: Option<u64>,
    /// Whether the store has room for the full sync.
    pub fits: bool,
    /// What the figures rest on and leave out.
    pub notes: Vec<String>,
}

/// One disk, as measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskEstimate {
    /// Its name.
    pub name: String,
    /// The device.
    pub path: String,
    /// Size.
    pub size_bytes: u64,
    /// Bytes a second read from it.
    pub read_rate_bytes: u64,
    /// Bytes read for the test.
    pub sampled_bytes: u64,
    /// Share of the sample that is zeros and takes no space, 0 to 1.
    pub zero_share: f64,
    /// Stored bytes for each byte that is not zero, 0 to 1.
    pub compressed_share: f64,
}

/// The store, as measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreEstimate {
    /// Its directory.
    pub path: String,
    /// Bytes a second written and made durable.
    pub write_rate_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
}
