//! Targets: other machines that take this one's images.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A request to make a target known, where this machine has been invited.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddTarget {
    /// The name of the target on this machine: 1 to 64 letters, digits, `.`, `_` and `-`. Example: `backup`.
    pub name: String,
    /// The line that `smc-store enrol` has printed on the target. It can be used once, within an hour.
    pub line: String,
    /// Whether the target is known already and this machine enrols there again: it gets another key, and the jobs that send images
    /// there go on. Default: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// The line is a secret: it is not shown.
impl std::fmt::Debug for AddTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddTarget")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The targets that this machine knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TargetList {
    /// The targets, sorted by name.
    pub targets: Vec<TargetView>,
}

/// A target, as this machine knows it, and what it says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TargetView {
    /// The name of the target on this machine.
    pub name: String,
    /// Where the target is reached: a host and a port.
    pub address: String,
    /// The name of this machine on the target.
    pub source: String,
    /// Until when this machine's certificate for the target is good. A sync renews it when less than 30 days are left. Absent if
    /// it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub valid_until: Option<Timestamp>,
    /// The jobs of smcd whose images go to the target and that may sync again. Absent where smcd was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<Vec<String>>,
    /// What the target says. Absent if it cannot be reached, or refuses to answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<TargetStatus>,
    /// Why the target says nothing. Absent if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a target says of itself and of what it has of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetStatus {
    /// The program that runs there and its version, for example `smc-store 0.1.0`.
    pub software: String,
    /// The bytes that are free for this machine: on the target's disk, or what its quota leaves.
    pub free_bytes: u64,
    /// How many seconds the clock of the target is ahead of this machine's; negative if it is behind. How long images are kept goes by
    /// the target's clock.
    pub clock_differs_s: i64,
    /// The jobs of this machine that have images there, each with the number of its newest image.
    pub jobs: BTreeMap<String, u64>,
}
