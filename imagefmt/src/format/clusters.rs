//! Sets of clusters of a disk.

use std::collections::BTreeMap;
use std::ops::Range;

/// Clusters of a disk, by index. Takes memory for each run of neighbours, not for each cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClusterSet {
    /// Ends of the runs, by their start. Runs neither overlap nor touch.
    runs: BTreeMap<u64, u64>,
}

impl ClusterSet {
    /// Adds the clusters of a range; any of them may be there already.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        // From behind: runs that reach into the range or touch it.
        while let Some((&first, &last)) = self.runs.range(..=end).next_back() {
            if last < start {
                break;
            }
            self.runs.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.runs.insert(start, end);
    }

    /// The clusters of either set.
    pub fn union(mut self, other: &Self) -> Self {
        other.runs().for_each(|run| self.insert(run));
        self
    }

    /// Takes a cluster out; says whether it was there.
    pub fn remove(&mut self, cluster: u64) -> bool {
        let Some(Range { start, end }) = self.run_with(cluster) else {
            return false;
        };
        self.runs.remove(&start);
        if start < cluster {
            self.runs.insert(start, cluster);
        }
        if cluster + 1 < end {
            self.runs.insert(cluster + 1, end);
        }
        true
    }

    pub fn contains(&self, cluster: u64) -> bool {
        self.run_with(cluster).is_some()
    }

    /// Whether all clusters of a range, which is not empty, are there.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        self.run_with(range.start).is_some_and(|run| range.end <= run.end)
    }

    /// The clusters as runs of neighbours, in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().map(|(&start, &end)| start..end)
    }

    /// These clusters in at most `max` runs, but at least one: where there are more, the narrowest gaps are closed.
    pub fn coarsened(self, max: usize) -> Self {
        let mut set = self;
        for shift in 0..u64::BITS {
            if set.runs.len() <= max {
                break;
            }
            let gap = 1 << shift;
            let mut coarser = Self::default();
            for run in set.runs() {
                match coarser.runs.last_entry() {
                    Some(mut last) if run.start - last.get() <= gap => *last.get_mut() = run.end,
                    _ => coarser.insert(run),
                }
            }
            set = coarser;
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The lowest cluster.
    pub fn first(&self) -> Option<u64> {
        self.runs.first_key_value().map(|(&start, _)| start)
    }

    fn run_with(&self, cluster: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.runs.range(..=cluster).next_back()?;
        (cluster < end).then_some(start..end)
    }
}

impl FromIterator<Range<u64>> for ClusterSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64, u64),
        Remove(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40_u64, 0..9_u64).prop_map(|(start, len)| Step::Insert(start, len)),
            (0..50_u64).prop_map(Step::Remove),
        ]
    }

    #[test]
    fn the_narrowest_gaps_are_closed_first() {
        let set: ClusterSet = [0..1, 2..3, 10..20, 100..101, 105..106].into_iter().collect();
        let runs = |max| set.clone().coarsened(max).runs().collect::<Vec<_>>();
        assert_eq!(runs(5), set.runs().collect::<Vec<_>>());
        assert_eq!(runs(4), [0..3, 10..20, 100..101, 105..106]);
        assert_eq!(runs(2), [0..20, 100..106]);
        assert_eq!(runs(0), vec![0..106; 1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_set_of_runs_is_a_set_of_clusters(steps in prop::collection::vec(step(), 0..40)) {
            let (mut set, mut plain) = (ClusterSet::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(start, len) => {
                        set.insert(start..start + len);
                        plain.extend(start..start + len);
                    }
                    Step::Remove(cluster) => prop_assert_eq!(set.remove(cluster), plain.remove(&cluster)),
                }
                prop_assert_eq!(set.first(), plain.first().copied());
                for cluster in 0..60 {
                    prop_assert_eq!(set.contains(cluster), plain.contains(&cluster));
                    let range = cluster..cluster + 3;
                    prop_assert_eq!(set.covers(&range), range.clone().all(|cluster| plain.contains(&cluster)));
                }
                let runs: Vec<_> = set.runs.iter().collect();
                prop_assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", runs);
            }
        }
    }
}
