//! How the image of a run came to show all its disks at one instant.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a run did to have all disks of its image at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RunInstant {
    /// The passes over all disks together before the filesystems were frozen, in their order.
    pub passes: Vec<RunPass>,
    /// How long writers were held, in microseconds: from before the first filesystem was frozen to after the last was thawed. 0 if
    /// nothing was frozen; `consistency_reason` says why.
    pub held_us: u64,
    /// How long freezing took of that, in microseconds.
    pub freezing_us: u64,
    /// The filesystems that were frozen, in that order.
    pub filesystems: Vec<RunFrozen>,
    /// What is on the disks and was not frozen, a clause each.
    pub left_out: Vec<String>,
}

/// One pass over all disks of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RunPass {
    /// The bytes read.
    pub bytes: u64,
    /// The bytes in clusters that differed from what had been stored.
    pub dirty_bytes: u64,
    /// How long the flush before the pass took, in milliseconds.
    pub flush_ms: u64,
}

/// A filesystem that was frozen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RunFrozen {
    /// Where it was mounted.
    pub mount_point: String,
    /// Its type, for example `xfs`.
    pub fs_type: String,
    /// How long freezing it took, in microseconds.
    pub freezing_us: u64,
}
