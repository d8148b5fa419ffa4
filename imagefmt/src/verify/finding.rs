//! What is wrong, and how it is told.

use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The image, as people write it: `web01/7`.
    pub image: String,
    /// The disk, where one is concerned.
    pub disk: Option<String>,
    /// The clusters that cannot be read because of it; empty where content is not concerned.
    pub clusters: Range<u64>,
    /// Byte offset of the first of them on the disk.
    pub offset: u64,
    /// What is wrong, and where it is stored; of several clusters, the first one's.
    pub what: String,
    /// What is wrong, without where.
    pub cause: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.image)?;
        if let Some(disk) = &self.disk {
            write!(f, ":{disk}")?;
        }
        let Range { start, end } = self.clusters;
        match end.saturating_sub(start) {
            0 => {}
            1 => write!(f, " cluster {start} (byte {})", self.offset)?,
            _ => write!(f, " clusters {start}-{} (from byte {})", end - 1, self.offset)?,
        }
        write!(f, ": {}", self.what)
    }
}

/// Something wrong with some clusters; with none where content is not concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub clusters: Range<u64>,
    pub cause: String,
    pub what: String,
}

impl Problem {
    pub fn new(clusters: Range<u64>, error: &Error) -> Self {
        Self {
            clusters,
            cause: error.cause().to_owned(),
            what: error.full_message(),
        }
    }

    /// What a finding says of `clusters`, which are among its own.
    pub fn of(finding: &Finding, clusters: Range<u64>) -> Self {
        Self {
            clusters,
            cause: finding.cause.clone(),
            what: finding.what.clone(),
        }
    }

    /// Takes in a neighbour of the same cause.
    fn absorbs(&mut self, next: &Self) -> bool {
        let (own, other) = (&self.clusters, &next.clusters);
        let touch = (own.start..=own.end).contains(&other.start);
        let both = !own.is_empty() && !other.is_empty();
        if !both || !touch || self.cause != next.cause {
            // What concerns no cluster is told one by one.
            return self == next;
        }
        self.clusters.end = own.end.max(other.end);
        true
    }

    /// What comes first where problems are told in order; of those that start alike, the widest.
    fn order(&self) -> (bool, u64, Reverse<u64>, &str) {
        let clusters = &self.clusters;
        (
            !clusters.is_empty(),
            clusters.start,
            Reverse(clusters.end),
            &self.what,
        )
    }
}

/// Adds a problem, or widens the one before it: a layer that is gone hurts millions of clusters alike.
pub(super) fn note(problems: &mut Vec<Problem>, problem: Problem) {
    if !problems.last_mut().is_some_and(|last| last.absorbs(&problem)) {
        problems.push(problem);
    }
}

/// Problems in order, with neighbours of the same cause as one, and no cluster in two of them.
pub(super) fn in_order(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by(|a, b| a.order().cmp(&b.order()));
    let mut told = HashSet::new();
    let mut merged: Vec<Problem> = Vec::new();
    for mut problem in problems {
        if problem.clusters.is_empty() {
            if told.insert((problem.cause.clone(), problem.what.clone())) {
                merged.push(problem);
            }
            continue;
        }
        // A node that was lost since an earlier run found a cluster below it damaged covers that one too.
        let taken = merged.last().map_or(0, |last| last.clusters.end);
        problem.clusters.start = problem.clusters.start.max(taken);
        if !problem.clusters.is_empty() {
            note(&mut merged, problem);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(clusters: Range<u64>, cause: &str) -> Problem {
        Problem {
            what: format!("{cause} at {}", clusters.start),
            cause: cause.to_owned(),
            clusters,
        }
    }

    #[test]
    fn neighbours_of_one_cause_are_one_problem() {
        let merged = in_order(vec![
            problem(5..6, "lost"),
            problem(3..5, "lost"),
            problem(6..7, "other"),
            problem(8..9, "other"),
        ]);
        let expected = [
            problem(3..6, "lost"),
            problem(6..7, "other"),
            problem(8..9, "other"),
        ];
        assert_eq!(merged, expected);
    }

    #[test]
    fn no_cluster_is_told_twice() {
        let merged = in_order(vec![
            problem(5..6, "flip"),
            problem(0..256, "lost"),
            problem(250..260, "flip"),
            problem(0..0, "padding"),
            problem(0..0, "count"),
            problem(0..0, "padding"),
        ]);
        let mut rest = problem(250..260, "flip");
        rest.clusters.start = 256;
        let expected = [
            problem(0..0, "count"),
            problem(0..0, "padding"),
            problem(0..256, "lost"),
            rest,
        ];
        assert_eq!(merged, expected);
    }

    #[test]
    fn what_comes_out_of_order_widens_nothing() {
        let mut problems = vec![problem(9..10, "lost")];
        note(&mut problems, problem(3..4, "lost"));
        assert_eq!(in_order(problems).len(), 2);
    }
}
