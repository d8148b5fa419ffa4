//! Which bytes of a device to read.

use std::ops::Range;
use std::sync::Arc;

/// Ranges of bytes, ascending; none is empty, and none touches another. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    ranges: Arc<[Range<u64>]>,
}

impl Ranges {
    /// All ranges, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().cloned()
    }

    /// Range number `index`.
    pub(crate) fn get(&self, index: usize) -> Option<Range<u64>> {
        self.ranges.get(index).cloned()
    }

    /// How many ranges there are.
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes of all ranges together.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// End of the last range; 0 where there is none.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// How many pieces of at most `piece_bytes` cover the ranges, each piece within one of them.
    pub fn pieces(&self, piece_bytes: u64) -> u64 {
        let pieces = |range: &Range<u64>| (range.end - range.start).div_ceil(piece_bytes.max(1));
        self.ranges.iter().map(pieces).sum()
    }
}

impl From<Range<u64>> for Ranges {
    fn from(range: Range<u64>) -> Ranges {
        [range].into_iter().collect()
    }
}

/// Takes ranges in any order; they may overlap, touch or be empty.
impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Ranges {
        let mut sorted: Vec<Range<u64>> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        sorted.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Ranges {
            ranges: merged.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ranges;

    #[test]
    fn ranges_are_sorted_and_merged() {
        let ranges: Ranges = [30..40, 5..5, 0..10, 10..12, 8..9, 39..50].into_iter().collect();
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..12, 30..50]);
        assert_eq!((ranges.bytes(), ranges.end(), ranges.count()), (32, 50, 2));
        assert_eq!(ranges.pieces(5), 3 + 4);
        assert!(Ranges::default().is_empty() && Ranges::from(7..7).is_empty());
        assert_eq!(Ranges::default().end(), 0);
    }
}
