//! What an overlay says of its allocation.

use std::ops::Range;

use super::cluster::{SECTOR_LEN, Sectors, State};
use super::cluster::{clusters, outside, sectors_of, within};
use super::{Overlay, read};
use crate::{ExportError, Extent, HOLE, ZERO};

/// Extents in one answer; whoever wants more asks again from where it stopped.
const EXTENTS_MAX: usize = 4096;
/// Clusters with a slot that one answer looks at in each shard.
const SHARD_MAX: usize = 256;

/// A run of the export's sectors of one state.
type Run = (State, Range<u64>);

impl Overlay {
    /// The allocation from `offset` on. Honest about space: without [`HOLE`] is only what can be
    /// written without a new slot or a new block of the file, so nothing of what is the base's.
    pub(super) fn allocation(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        let end = offset + length;
        let runs = self.survey(offset, end);
        let base = self.below(&runs, offset, end)?;
        let mut answer = Answer::new(offset);
        for (state, run) in runs {
            let until = end.min(run.end * SECTOR_LEN as u64);
            match own_flags(state) {
                Some(flags) => answer.push(until, flags),
                None => answer.push_base(until, &base),
            }
            if answer.end < until || answer.extents.len() >= EXTENTS_MAX {
                break;
            }
        }
        Ok(answer.extents)
    }

    /// What the base says from the first of its bytes on, as ends and flags. Nothing if it cannot
    /// tell and the answer has something without it.
    fn below(&self, runs: &[Run], offset: u64, end: u64) -> Result<Vec<(u64, u32)>, ExportError> {
        let Some((_, run)) = runs.iter().find(|(state, _)| *state == State::Base) else {
            return Ok(Vec::new());
        };
        let mut at = offset.max(run.start * SECTOR_LEN as u64);
        match self.base.extents(at, end - at) {
            Err(_) if at > offset => Ok(Vec::new()),
            Err(error) => Err(error),
            Ok(extents) => Ok(extents
                .iter()
                .map(|extent| {
                    at = at.saturating_add(extent.length);
                    (at, extent.flags & ZERO | HOLE)
                })
                .collect()),
        }
    }

    /// The runs of sectors from `offset` on, consecutive and at least one: up to `end`, or less
    /// where there are many. The locks are not held together: each cluster is reported as it was at
    /// some time during the call.
    fn survey(&self, offset: u64, end: u64) -> Vec<Run> {
        let unit = SECTOR_LEN as u64;
        let mut sectors = offset / unit..end.div_ceil(unit);
        let slotted = self.slotted(&mut sectors);
        let zeros: Vec<_> = read(&self.zeros).runs(&sectors).take(EXTENTS_MAX).collect();
        if zeros.len() == EXTENTS_MAX {
            sectors.end = zeros.last().map_or(sectors.end, |last| last.end);
        }
        let mut runs = Vec::new();
        for (cluster, states) in slotted {
            let range = within(cluster, &sectors);
            if range.is_empty() || runs.len() >= EXTENTS_MAX {
                break;
            }
            let known = outside(cluster, &range);
            add_gap(&mut runs, sectors.start..known.start, &zeros);
            for (state, run) in states.runs(range) {
                add(&mut runs, state, &outside(cluster, &run));
            }
            sectors.start = known.end;
        }
        if runs.len() < EXTENTS_MAX {
            add_gap(&mut runs, sectors, &zeros);
        }
        runs
    }

    /// The clusters with a slot among these sectors, in order; shortens `sectors` to what was
    /// looked at.
    fn slotted(&self, sectors: &mut Range<u64>) -> Vec<(u64, Sectors)> {
        let all = clusters(sectors);
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = read(shard);
            let entries = shard.range(all.clone()).take(SHARD_MAX);
            let before = found.len();
            found.extend(entries.map(|(&cluster, entry)| (cluster, entry.sectors())));
            if let Some((last, _)) = found.last().filter(|_| found.len() - before == SHARD_MAX) {
                sectors.end = sectors.end.min(sectors_of(*last).end);
            }
        }
        found.sort_unstable_by_key(|(cluster, _)| *cluster);
        found
    }
}

/// The flags of what is not the base's.
fn own_flags(state: State) -> Option<u32> {
    match state {
        State::Base => None,
        State::Data => Some(0),
        State::Hole => Some(HOLE | ZERO),
        State::Room => Some(ZERO),
    }
}

/// Adds a range in which no cluster has a slot.
fn add_gap(runs: &mut Vec<Run>, range: Range<u64>, zeros: &[Range<u64>]) {
    let mut start = range.start;
    let first = zeros.partition_point(|zero| zero.end <= range.start);
    for zero in zeros[first..].iter().take_while(|zero| zero.start < range.end) {
        let end = zero.end.min(range.end);
        add(runs, State::Base, &(start..zero.start.max(start)));
        add(runs, State::Hole, &(zero.start.max(start)..end));
        start = end;
    }
    add(runs, State::Base, &(start..range.end));
}

fn add(runs: &mut Vec<Run>, state: State, range: &Range<u64>) {
    match runs.last_mut() {
        _ if range.is_empty() => {}
        Some((last, run)) if *last == state => run.end = range.end,
        _ => runs.push((state, range.clone())),
    }
}

/// Consecutive extents, neighbours of one kind merged.
struct Answer {
    extents: Vec<Extent>,
    /// Where the next one begins.
    end: u64,
}

impl Answer {
    fn new(start: u64) -> Self {
        Self {
            extents: Vec::new(),
            end: start,
        }
    }

    fn push(&mut self, until: u64, flags: u32) {
        let length = until - self.end;
        match self.extents.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.flags == flags => last.length += length,
            _ => self.extents.push(Extent { length, flags }),
        }
        self.end = until;
    }

    /// Adds what the base says up to `until`, or as far as it says anything.
    fn push_base(&mut self, until: u64, base: &[(u64, u32)]) {
        let first = base.partition_point(|(end, _)| *end <= self.end);
        for (end, flags) in &base[first..] {
            if self.end == until || self.extents.len() >= EXTENTS_MAX {
                break;
            }
            self.push(until.min(*end), *flags);
        }
    }
}
