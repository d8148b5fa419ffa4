//! How an image came to show all its disks at one instant, or how far the sync came with that.

use serde::{Deserialize, Serialize};

/// What a sync did to have all disks at one instant. It is for people: nothing in the image depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstantRecord {
    /// The passes over all disks together before the freeze, in their order.
    pub passes: Vec<PassRecord>,
    /// How long writers were held, in microseconds: from before the first filesystem was frozen to after the last was thawed. 0 if
    /// nothing was frozen.
    pub held_us: u64,
    /// How long freezing took of that, in microseconds.
    pub freezing_us: u64,
    /// The filesystems that were frozen, in that order.
    pub filesystems: Vec<FrozenRecord>,
    /// What is on the disks and was not frozen, a clause each.
    pub left_out: Vec<String>,
}

/// One pass over all disks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PassRecord {
    /// Bytes read.
    pub bytes: u64,
    /// Bytes among them in clusters that differed from what had been stored.
    pub dirty_bytes: u64,
    /// How long the flush before it took, in milliseconds.
    pub flush_ms: u64,
}

/// A filesystem that was frozen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrozenRecord {
    /// Where it was mounted.
    pub mount_point: String,
    /// Its type, as mountinfo(5) has it.
    pub fs_type: String,
    /// How long freezing it took, in microseconds.
    pub freezing_us: u64,
}
