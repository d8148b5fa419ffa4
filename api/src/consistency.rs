//! The consistency class that the images of a job are to have.

use crate::limits;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use utoipa::ToSchema;

/// The consistency class that images are to have at least.
///
/// - `any`: every image is good.
/// - `crash`: what a power cut would leave, or better.
/// - `filesystem`: all filesystems at one instant, or better. The sync freezes them for a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeastConsistency {
    /// Every image is good.
    #[default]
    Any,
    /// What a power cut would leave, or better.
    Crash,
    /// All filesystems at one instant, or better.
    Filesystem,
}

impl LeastConsistency {
    /// How long a sync may hold writers: what was asked for (zero: not at all), or else what the class needs. `None` if nothing is
    /// to be frozen.
    pub fn freeze_budget(self, asked: Option<Duration>) -> Option<Duration> {
        let needed = (self == Self::Filesystem).then_some(limits::FREEZE_BUDGET_DEFAULT);
        asked.or(needed).filter(|budget| !budget.is_zero())
    }
}

impl fmt::Display for LeastConsistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Any => "any",
            Self::Crash => "crash",
            Self::Filesystem => "filesystem",
        })
    }
}

impl FromStr for LeastConsistency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Any, Self::Crash, Self::Filesystem];
        let found = all.into_iter().find(|class| class.to_string() == text);
        found.ok_or_else(|| "it must be any, crash or filesystem".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_as_they_are_written() {
        for text in ["any", "crash", "filesystem"] {
            assert_eq!(text.parse::<LeastConsistency>().unwrap().to_string(), text);
        }
        assert!("offline".parse::<LeastConsistency>().is_err());
    }

    #[test]
    fn only_the_class_filesystem_freezes_by_itself() {
        use LeastConsistency::{Any, Crash, Filesystem};
        assert_eq!(Any.freeze_budget(None), None);
        assert_eq!(Crash.freeze_budget(None), None);
        assert_eq!(
            Filesystem.freeze_budget(None),
            Some(limits::FREEZE_BUDGET_DEFAULT)
        );
        let short = Some(Duration::from_millis(50));
        assert_eq!(Any.freeze_budget(short), short);
        assert_eq!(Filesystem.freeze_budget(Some(Duration::ZERO)), None);
    }
}
