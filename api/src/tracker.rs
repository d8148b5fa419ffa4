//! The tracker: which disks it watches, and what that costs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The state of the tracker, which notes in the kernel which parts of disks are written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrackerView {
    /// Whether this machine can track disks.
    pub available: bool,
    /// Why it cannot, as a clause. Absent if it can.
    pub unavailable_reason: Option<String>,
    /// Whether the tracker's programs are attached in the kernel now.
    pub attached: bool,
    /// What is wrong with the tracker as a whole, as a sentence. Absent if nothing is known.
    pub problem: Option<String>,
    /// The directory of the BPF filesystem in which the tracker is pinned.
    pub directory: String,
    /// The writes whose end the tracker's programs have seen since they were attached, of all disks of the machine.
    pub events: u64,
    /// The memory of the kernel that the bits of all disks take, in bytes.
    pub memory_bytes: u64,
    /// The disks that are watched.
    pub disks: Vec<TrackedDisk>,
}

/// A disk that the tracker watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrackedDisk {
    /// The kernel's name of the disk, for example `vda`; its number, for example `254:0`, if the disk is gone.
    pub name: String,
    /// The unfinished jobs that track this disk. Empty if `smcd sync --track` began to watch it.
    pub jobs: Vec<String>,
    /// Since when the disk is watched.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// The bytes for which the tracker has one bit.
    pub cluster_bytes: u32,
    /// The clusters that were written to since the newest image, as far as is known.
    pub dirty_clusters: u64,
    /// The bytes in these clusters.
    pub dirty_bytes: u64,
    /// Whether a sync that uses the tracker runs, or was killed.
    pub under_way: bool,
    /// Whether the next sync can believe the tracker, if nothing changes until then.
    pub trusted: bool,
    /// Why it cannot, as a clause. Absent if it can.
    pub doubt: Option<String>,
    /// Whether the tracker is known to have missed writes, or may have, since the newest image.
    pub missed: bool,
    /// The writes to this disk that the tracker has noted.
    pub events: u64,
    /// The memory of the kernel that the bits of this disk take, in bytes.
    pub memory_bytes: u64,
}
