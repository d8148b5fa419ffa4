//! Whether this machine is ready to be migrated and to boot elsewhere.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// It may go wrong, or could not be found out.
    Warning,
    /// It will go wrong.
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

/// One line of a precheck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What was looked at, for programs: `initramfs_virtio`.
    pub id: String,
    /// How bad it is.
    pub level: Level,
    /// What was found, to what.
    pub found: String,
    /// What to do; absent where nothing is to be done.
    pub advice: Option<String>,
}

/// All lines of a precheck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Precheck {
    /// In the order in which people read them.
    pub checks: Vec<Check>,
}

impl Precheck {
    /// The worst of its lines.
    pub fn worst(&self) -> Level {
        self.checks
            .iter()
            .map(|check| check.level)
            .max()
            .unwrap_or(Level::Ok)
    }
}
