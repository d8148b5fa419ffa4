//! The lines of a precheck as they come together: bounded in number and length.

use std::collections::BTreeMap;

use api::{Check, Level, Precheck};

use crate::text::escaped;

/// Lines of one level about one matter: a table of a thousand wrong mounts needs no thousand lines.
const LINES_MAX: usize = 20;

/// Longest text of a line, in characters.
const TEXT_MAX: usize = 1200;

/// The lines so far.
#[derive(Default)]
pub(super) struct Findings {
    checks: Vec<Check>,
    /// How many lines there are about each matter, also those past the limit.
    counts: BTreeMap<(&'static str, Level), usize>,
}

impl Findings {
    /// Nothing to do.
    pub fn ok(&mut self, id: &'static str, found: impl AsRef<str>) {
        self.push(id, Level::Ok, found.as_ref(), None);
    }

    /// It may go wrong, or could not be determined.
    pub fn warning(&mut self, id: &'static str, found: impl AsRef<str>, advice: impl AsRef<str>) {
        self.push(id, Level::Warning, found.as_ref(), Some(advice.as_ref()));
    }

    /// It will go wrong.
    pub fn critical(&mut self, id: &'static str, found: impl AsRef<str>, advice: impl AsRef<str>) {
        self.push(id, Level::Critical, found.as_ref(), Some(advice.as_ref()));
    }

    pub fn bad(&mut self, id: &'static str, level: Level, found: impl AsRef<str>, advice: impl AsRef<str>) {
        self.push(id, level, found.as_ref(), Some(advice.as_ref()));
    }

    /// Whether there is a line about this matter already.
    pub fn has(&self, id: &str) -> bool {
        self.counts.keys().any(|(known, _)| *known == id)
    }

    fn push(&mut self, id: &'static str, level: Level, found: &str, advice: Option<&str>) {
        let count = self.counts.entry((id, level)).or_default();
        *count += 1;
        if *count > LINES_MAX {
            return;
        }
        self.checks.push(Check {
            id: id.to_owned(),
            level,
            found: escaped(found, TEXT_MAX),
            advice: advice.map(|advice| escaped(advice, TEXT_MAX)),
        });
    }

    /// All lines, each matter's together with how many were left off.
    pub fn finish(mut self) -> Precheck {
        for ((id, level), count) in self.counts.into_iter().filter(|(_, count)| *count > LINES_MAX) {
            let is_alike = |check: &Check| check.id == id && check.level == level;
            let last = self.checks.iter().rposition(is_alike);
            let found = format!("{} more lines like these", count - LINES_MAX);
            let advice = (level > Level::Ok).then(|| "repair the ones above, then check again".to_owned());
            let more = Check {
                id: id.to_owned(),
                level,
                found,
                advice,
            };
            self.checks.insert(last.map_or(0, |last| last + 1), more);
        }
        Precheck { checks: self.checks }
    }
}
