//! Whether this machine is ready to be migrated and to boot elsewhere.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// How serious a finding is.
///
/// - `ok`: nothing to do.
/// - `warning`: it may go wrong, or could not be checked.
/// - `critical`: the migration or the start of the copy will fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// It may go wrong, or could not be checked.
    Warning,
    /// The migration or the start of the copy will fail.
    Critical,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}

/// One finding of a precheck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// An identifier of the check for programs, for example `initramfs_virtio`.
    pub id: String,
    /// How serious the finding is.
    pub level: Level,
    /// What was found, as a sentence for people.
    pub found: String,
    /// What to do about it. Absent if there is nothing to do.
    pub advice: Option<String>,
}

/// The findings of a precheck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Precheck {
    /// The findings, in the order in which they should be shown.
    pub checks: Vec<Check>,
}

impl Precheck {
    /// The most serious level among the findings; `Ok` if there are none.
    pub fn worst(&self) -> Level {
        self.checks
            .iter()
            .map(|check| check.level)
            .max()
            .unwrap_or(Level::Ok)
    }
}
