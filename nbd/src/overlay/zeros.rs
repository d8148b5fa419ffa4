//! Ranges that are zero and have no space.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cluster::{Sectors, mask, sectors_of, within};

/// Sectors of an export that are zeros unless their cluster has a slot: then the slot's states
/// count.
///
/// The set only grows, because a sector that was written or zeroed is never the base's again, and
/// what is written to later has a slot, which counts first. So a write into a range splits
/// nothing, and one that covers terabytes stays a single entry.
#[derive(Debug, Default)]
pub(super) struct Zeros {
    /// From start to end; neither overlapping nor adjoining.
    ranges: BTreeMap<u64, u64>,
}

impl Zeros {
    /// Adds a range. False, and nothing has changed, if that needs an entry and there is none
    /// left in `budget`.
    pub fn insert(&mut self, range: Range<u64>, budget: &Budget) -> bool {
        let touching = self.touching(&range);
        if touching.is_none() && !budget.take() {
            return false;
        }
        let (mut start, mut end) = (range.start, range.end);
        let mut merged = 0;
        let mut next = touching;
        while let Some(other) = next {
            self.ranges.remove(&other.start);
            (start, end) = (start.min(other.start), end.max(other.end));
            merged += 1;
            next = self.touching(&(start..end));
        }
        self.ranges.insert(start, end);
        budget.release(merged.max(1) - 1);
        true
    }

    /// The last range that overlaps or adjoins this one.
    fn touching(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let (&start, &end) = self.ranges.range(..=range.end).next_back()?;
        (end >= range.start).then_some(start..end)
    }

    /// What lies in `range`, clipped to it, in order.
    pub fn runs(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let before = self.ranges.range(..range.start).next_back();
        let Range { start, end } = *range;
        before
            .into_iter()
            .chain(self.ranges.range(start..end))
            .map(move |(&first, &last)| first.max(start)..last.min(end))
            .filter(|run| !run.is_empty())
    }

    /// The states of a cluster's sectors that has no slot.
    pub fn sectors(&self, cluster: u64) -> Sectors {
        let all = sectors_of(cluster);
        let runs = self.runs(&all);
        Sectors::holes(runs.fold(0, |bits, run| bits | mask(&within(cluster, &run))))
    }

    /// Number of entries.
    pub fn len(&self) -> u64 {
        self.ranges.len() as u64
    }
}

/// Entries that the overlays of a space may still make.
#[derive(Debug)]
pub(super) struct Budget(AtomicU64);

impl Budget {
    pub fn new(entries: u64) -> Self {
        Self(AtomicU64::new(entries))
    }

    fn take(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
    }

    pub fn release(&self, entries: u64) {
        self.0.fetch_add(entries, Ordering::Relaxed);
    }
}
