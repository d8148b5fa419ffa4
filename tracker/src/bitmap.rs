//! Sets of clusters, a bit each.

use std::ops::Range;

/// A set of the clusters of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bitmap {
    words: Vec<u64>,
    clusters: u64,
}

impl Bitmap {
    /// No cluster of a disk of `clusters` clusters.
    pub fn empty(clusters: u64) -> Bitmap {
        Bitmap {
            words: vec![0; index(clusters.div_ceil(64))],
            clusters,
        }
    }

    /// As [`empty`](Bitmap::empty), with memory of which the kernel has given all pages: adding a cluster allocates nothing there
    /// either.
    pub fn in_memory(clusters: u64) -> Bitmap {
        let mut bitmap = Bitmap {
            words: vec![u64::MAX; index(clusters.div_ceil(64))],
            clusters,
        };
        bitmap.clear();
        bitmap
    }

    /// How many clusters the disk has.
    pub fn clusters(&self) -> u64 {
        self.clusters
    }

    /// How many clusters are in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no cluster is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Whether a cluster is in the set. One behind the end of the disk is not.
    pub fn contains(&self, cluster: u64) -> bool {
        let word = self.words.get(index(cluster / 64));
        cluster < self.clusters && word.is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }

    /// Adds a cluster. One behind the end of the disk is ignored.
    pub fn insert(&mut self, cluster: u64) {
        if cluster < self.clusters {
            self.words[index(cluster / 64)] |= 1 << (cluster % 64);
        }
    }

    /// Adds all clusters of another set; those behind the end of this disk are ignored.
    pub fn union(&mut self, other: &Bitmap) {
        for (position, word) in other.words.iter().enumerate().take(self.words.len()) {
            self.merge(position, *word);
        }
    }

    /// Takes all clusters of another set out.
    pub fn remove(&mut self, other: &Bitmap) {
        for (own, word) in self.words.iter_mut().zip(&other.words) {
            *own &= !word;
        }
    }

    /// Takes all clusters out. The memory stays.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The clusters as ranges in ascending order, where at most `merge_gap` clusters between two are taken in.
    pub fn ranges(&self, merge_gap: u64) -> Ranges<'_> {
        Ranges {
            bitmap: self,
            next: 0,
            merge_gap,
        }
    }

    /// Adds the clusters of a word.
    pub(crate) fn merge(&mut self, position: usize, word: u64) {
        let first = position as u64 * 64;
        let valid = match self.clusters.saturating_sub(first) {
            0 => 0,
            behind if behind >= 64 => u64::MAX,
            behind => (1 << behind) - 1,
        };
        if let Some(own) = self.words.get_mut(position) {
            *own |= word & valid;
        }
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// The first cluster from `from` on that is in the set, or is not.
    fn find(&self, from: u64, wanted: bool) -> Option<u64> {
        let mut position = index(from / 64);
        let mut skipped = u64::MAX << (from % 64);
        while let Some(&word) = self.words.get(position) {
            let found = if wanted { word } else { !word } & skipped;
            if found != 0 {
                let cluster = position as u64 * 64 + u64::from(found.trailing_zeros());
                return (cluster < self.clusters).then_some(cluster);
            }
            skipped = u64::MAX;
            position += 1;
        }
        None
    }
}

/// Iterator of [`Bitmap::ranges`].
#[derive(Debug, Clone)]
pub struct Ranges<'a> {
    bitmap: &'a Bitmap,
    next: u64,
    merge_gap: u64,
}

impl Iterator for Ranges<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let start = self.bitmap.find(self.next, true)?;
        loop {
            let from = self.next.max(start);
            let end = self.bitmap.find(from, false).unwrap_or(self.bitmap.clusters);
            match self.bitmap.find(end, true) {
                Some(following) if following - end <= self.merge_gap => self.next = following,
                _ => {
                    self.next = end;
                    return Some(start..end);
                }
            }
        }
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::Random;

    fn of(clusters: u64, members: &[u64]) -> Bitmap {
        let mut bitmap = Bitmap::empty(clusters);
        members.iter().for_each(|&cluster| bitmap.insert(cluster));
        bitmap
    }

    #[test]
    fn ranges_merge_gaps_up_to_the_limit_only() {
        let bitmap = of(200, &[0, 1, 5, 63, 64, 65, 130, 199]);
        let ranges = |gap| bitmap.ranges(gap).collect::<Vec<_>>();
        assert_eq!(ranges(0), [0..2, 5..6, 63..66, 130..131, 199..200]);
        assert_eq!(ranges(3), [0..6, 63..66, 130..131, 199..200]);
        assert_eq!(ranges(64), [0..131, 199..200]);
        assert_eq!(ranges(u64::MAX), std::slice::from_ref(&(0..200)));
    }

    #[test]
    fn an_empty_and_a_full_set_have_no_range_and_one() {
        assert_eq!(Bitmap::empty(0).ranges(0).count(), 0);
        assert_eq!(Bitmap::empty(65).ranges(9).count(), 0);
        let full = of(65, &(0..65).collect::<Vec<_>>());
        assert!(full.ranges(0).eq(std::iter::once(0..65)));
        assert_eq!(full.count(), 65);
    }

    #[test]
    fn what_lies_behind_the_end_is_never_in_a_set() {
        let mut bitmap = of(70, &[69, 70, 1000]);
        bitmap.merge(1, u64::MAX);
        bitmap.merge(2, u64::MAX);
        assert_eq!(bitmap.count(), 6);
        assert!(bitmap.contains(69) && !bitmap.contains(70) && !bitmap.contains(u64::MAX));
    }

    #[test]
    fn what_is_removed_is_gone_and_the_rest_stays() {
        let mut bitmap = of(130, &[0, 5, 64, 129]);
        bitmap.remove(&of(130, &[5, 6, 129]));
        assert!(bitmap.ranges(0).eq([0..1, 64..65]));
        bitmap.remove(&of(10, &[0]));
        assert!(bitmap.ranges(0).eq(std::iter::once(64..65)), "a shorter set");
        bitmap.clear();
        assert!(bitmap.is_empty() && bitmap.clusters() == 130);
    }

    #[test]
    fn a_union_holds_the_members_of_both_and_ranges_hold_exactly_the_members() {
        let mut random = Random::new(3);
        for clusters in [1, 63, 64, 65, 1000] {
            let some: Vec<u64> = (0..clusters / 3 + 1).map(|_| random.below(clusters)).collect();
            let others: Vec<u64> = (0..clusters / 3 + 1).map(|_| random.below(clusters)).collect();
            let mut both = of(clusters, &some);
            both.union(&of(clusters, &others));
            let members: Vec<u64> = both.ranges(0).flatten().collect();
            let expected: std::collections::BTreeSet<u64> = some.into_iter().chain(others).collect();
            assert_eq!(members, expected.into_iter().collect::<Vec<_>>());
            assert_eq!(both.count(), members.len() as u64);
        }
    }
}
