//! With which I/O priority disks are read.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The I/O priority of a job's reads from its disks, in the words of ionice(1).
///
/// In JSON it is a string: `none`, `idle`, `best-effort:0` (served first) to `best-effort:7`. `best-effort` is
/// `best-effort:4`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum IoPriority {
    /// As any other process.
    #[default]
    None,
    /// Class `best-effort`, with a level from 0 (served first) to 7.
    BestEffort(u8),
    /// Class `idle`: served when nobody else wants to read or write.
    Idle,
}

/// The level of `best-effort` without one, as for ionice.
const LEVEL_DEFAULT: u8 = 4;
const LEVEL_LAST: u8 = 7;

impl fmt::Display for IoPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::BestEffort(level) => f.pad(&format!("best-effort:{level}")),
            Self::Idle => f.pad("idle"),
        }
    }
}

impl FromStr for IoPriority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level = match text.strip_prefix("best-effort") {
            Some("") => Some(LEVEL_DEFAULT),
            Some(level) => level.strip_prefix(':').and_then(|level| level.parse().ok()),
            None => None,
        };
        match (text, level) {
            ("none", _) => Ok(Self::None),
            ("idle", _) => Ok(Self::Idle),
            (_, Some(level)) if level <= LEVEL_LAST => Ok(Self::BestEffort(level)),
            _ => Err(format!(
                "io_priority {text:?} does not exist: use none, idle, or best-effort:0 (first) to best-effort:7 (last)"
            )),
        }
    }
}

impl TryFrom<String> for IoPriority {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<IoPriority> for String {
    fn from(priority: IoPriority) -> Self {
        priority.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::IoPriority;

    #[test]
    fn the_words_are_those_of_ionice() {
        for (text, priority) in [
            ("none", IoPriority::None),
            ("idle", IoPriority::Idle),
            ("best-effort:0", IoPriority::BestEffort(0)),
            ("best-effort:7", IoPriority::BestEffort(7)),
        ] {
            assert_eq!(text.parse(), Ok(priority));
            assert_eq!(priority.to_string(), text);
            let json = format!("{text:?}");
            assert_eq!(serde_json::from_str::<IoPriority>(&json).unwrap(), priority);
            assert_eq!(serde_json::to_string(&priority).unwrap(), json);
        }
        assert_eq!("best-effort".parse(), Ok(IoPriority::BestEffort(4)));
    }

    #[test]
    fn other_words_are_refused_with_those_that_there_are() {
        for text in [
            "",
            "realtime",
            "best-effort:",
            "best-effort:8",
            "best-effort:-1",
            "best-effort7",
            "Idle",
        ] {
            let refused = text.parse::<IoPriority>().unwrap_err();
            assert!(refused.contains("best-effort:7 (last)"), "{text}: {refused}");
        }
    }
}
