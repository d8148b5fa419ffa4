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

#[cfg(test)]
mod tests {
    use super::*;
    use imagefmt::ClusterSize;

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
