//! What a pass over a disk reads.

use blockio::Ranges;
use imagefmt::{Geometry, Method};
use std::ops::Range;

/// Which parts of a disk a pass reads and compares, how they were found, and why that way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    ranges: Ranges,
    method: Method,
    reason: String,
}

/// Unchanged bytes between two changed clusters that are read too, where that costs no more than another read.
///
/// Measured (`bench --only merge-gap`: two clusters with a gap, read and hashed, 16 reads in flight, on a busy machine): on a loop
/// device, one read over 64 KiB took 0.6 to 1.0 of the time of two, over 128 KiB 0.6 to 1.25, over 256 KiB 1.6 to 1.8, over 1 MiB
/// 3 to 3.6; on zram 1.08, 1.6 to 2.7, 1.1 to 2.1, 5.6. A disk that seeks was not there to be measured; sorted reads pass over a
/// short gap in the time that reading it takes.
pub const MERGE_GAP_BYTES: u64 = 64 << 10;

/// Ranges of one plan; where there are more, wider gaps are read too, so that a plan takes little memory.
const RANGES_MAX: usize = 1 << 18;

impl Plan {
    /// The clusters of these ranges, in any order; what lies behind the end of the disk is left out.
    pub fn new(
        geometry: Geometry,
        clusters: impl IntoIterator<Item = Range<u64>>,
        method: Method,
        reason: &str,
    ) -> Self {
        let count = geometry.cluster_count();
        let bytes = |clusters: Range<u64>| {
            let end = clusters.end.min(count);
            let start = clusters.start.min(end);
            let end = geometry.cluster_offset(end).min(geometry.size_bytes());
            geometry.cluster_offset(start)..end
        };
        Self {
            ranges: clusters.into_iter().map(bytes).collect(),
            method,
            reason: reason.to_owned(),
        }
    }

    /// All of the disk, which is always right: compared with its parent image, or taken whole where `parent` has
    /// nothing of it.
    pub fn scan(geometry: Geometry, has_parent: bool) -> Self {
        let all = std::iter::once(0..geometry.cluster_count());
        if has_parent {
            Self::new(geometry, all, Method::Scan, "no tracker watched the disk")
        } else {
            Self::new(geometry, all, Method::Full, "first image of the disk")
        }
    }

    /// The clusters that a tracker names, in ascending order, with the gaps between them that are cheaper to read than
    /// to skip; and those that have to be stored anew whatever the tracker says.
    pub fn tracked<I>(geometry: Geometry, changed: &I, anew: &[Range<u64>], reason: &str) -> Self
    where
        I: Iterator<Item = Range<u64>> + Clone,
    {
        let mut gap = MERGE_GAP_BYTES / u64::from(geometry.cluster_size().bytes());
        let merged = loop {
            match merge(changed.clone(), gap) {
                Some(merged) => break merged,
                None => gap = gap.max(1) * 2,
            }
        };
        let all = merged.into_iter().chain(anew.iter().cloned());
        Self::new(geometry, all, Method::Tracked, reason)
    }

    /// The same plan for another reason.
    pub fn because(self, reason: &str) -> Self {
        Self {
            reason: reason.to_owned(),
            ..self
        }
    }

    /// The bytes to read: whole clusters, up to the end of the disk.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// How the ranges were found.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Why that way.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Bytes of all ranges together.
    pub fn bytes(&self) -> u64 {
        self.ranges.bytes()
    }
}

/// Ascending ranges, with the gaps of at most `gap` clusters between them; `None` where these are still too many.
fn merge(ranges: impl IntoIterator<Item = Range<u64>>, gap: u64) -> Option<Vec<Range<u64>>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start.saturating_sub(last.end) <= gap => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
        if merged.len() > RANGES_MAX {
            return None;
        }
    }
    Some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use imagefmt::ClusterSize;

    #[test]
    fn a_tracked_plan_reads_narrow_gaps_and_what_has_to_be_stored_anew() {
        let geometry = Geometry::new(100 * 65536, ClusterSize::K64).unwrap();
        let gap = MERGE_GAP_BYTES / 65536;
        let changed = [3..4, 4 + gap..5 + gap, 50..51, 52 + gap..53 + gap];
        let plan = Plan::tracked(geometry, &changed.into_iter(), &[90..92, 3..4], "bits");
        let clusters: Vec<_> = plan
            .ranges()
            .iter()
            .map(|range| range.start / 65536..range.end / 65536)
            .collect();
        assert_eq!(clusters, [3..5 + gap, 50..51, 52 + gap..53 + gap, 90..92]);
        assert_eq!((plan.method(), plan.reason()), (Method::Tracked, "bits"));
        let nothing = Plan::tracked(geometry, &std::iter::empty(), &[], "bits");
        assert!(nothing.ranges().is_empty());
    }

    #[test]
    fn a_plan_of_very_many_pieces_reads_wider_gaps() {
        let clusters = 3 * RANGES_MAX as u64 + 7;
        let geometry = Geometry::new(clusters * 16384, ClusterSize::K16).unwrap();
        let gap = MERGE_GAP_BYTES / 16384 + 1;
        let changed = (0..clusters / (gap + 1)).map(|i| i * (gap + 1)..i * (gap + 1) + 1);
        let few = Plan::tracked(geometry, &changed, &[], "bits");
        assert_eq!(few.ranges().count() as u64, clusters / (gap + 1));
        let geometry = Geometry::new(clusters * 8 * 16384, ClusterSize::K16).unwrap();
        let mut changed = (0..clusters * 8 / (gap + 1)).map(|i| i * (gap + 1)..i * (gap + 1) + 1);
        let many = Plan::tracked(geometry, &changed, &[], "bits");
        let last = changed.next_back().unwrap().end * 16384;
        assert_eq!((many.ranges().count(), many.ranges().end()), (1, last));
    }

    #[test]
    fn plans_are_of_whole_clusters_and_end_with_the_disk() {
        let geometry = Geometry::new(10 * 65536 + 5, ClusterSize::K64).unwrap();
        let plan = Plan::new(
            geometry,
            [9..40, 2..3, 3..4, 50..60, 7..7],
            Method::Tracked,
            "bits",
        );
        let ranges: Vec<_> = plan.ranges().iter().collect();
        assert_eq!(ranges, [2 * 65536..4 * 65536, 9 * 65536..10 * 65536 + 5]);
        assert_eq!(plan.bytes(), 3 * 65536 + 5);
        let scan = Plan::scan(geometry, true);
        assert_eq!(
            (scan.bytes(), scan.method()),
            (geometry.size_bytes(), Method::Scan)
        );
        assert_eq!(Plan::scan(geometry, false).method(), Method::Full);
    }
}
