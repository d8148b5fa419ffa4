//! The audit: runs of clusters that the tracker calls unchanged are read all the same and compared.
//!
//! Every tracked sync continues where the one before it ended, so that all of a disk has its turn.

use super::error::{Result, Within};
use super::passes::{DAMAGED, Planned, Reading, named};
use super::request::Observer;
use super::seen::Seen;
use changetrack::{Plan, Sink};
use imagefmt::{Audited, ClusterUpdate, Geometry, Method};
use std::ops::Range;
use std::time::{Duration, Instant};
use tracker::Bitmap;

/// Bytes that are read in one piece.
const RUN_BYTES: u64 = 1 << 20;

/// Runs that are read before the clock is looked at again.
const RUNS_AT_ONCE: u64 = 4;

/// What an audit reads where nothing has changed: a disk of 100 GiB has had its turn after 3,200 syncs.
const IDLE_BYTES: u64 = 32 << 20;

/// How long an audit may take in a sync that is over at once.
const IDLE_TIME: Duration = Duration::from_millis(50);

/// The order in which the runs of a disk are audited: a permutation that leaps over the disk, so that neighbours, which are
/// likely to be written together, are not audited together.
#[derive(Debug, Clone, Copy)]
struct Turns {
    count: u64,
    step: u64,
    /// Clusters of a run.
    clusters: u64,
}

impl Turns {
    /// Of a disk.
    fn of(geometry: Geometry) -> Self {
        let clusters = RUN_BYTES / u64::from(geometry.cluster_size().bytes());
        let count = geometry.cluster_count().div_ceil(clusters);
        Self {
            count,
            step: leap(count),
            clusters,
        }
    }

    /// The clusters of the run with this turn; that of the last one may end behind the disk.
    fn run(&self, position: u64) -> Range<u64> {
        // Both are below 2^44.
        let run = u128::from(position % self.count) * u128::from(self.step) % u128::from(self.count);
        let first = u64::try_from(run).unwrap_or(0) * self.clusters;
        first..first + self.clusters
    }
}

/// A number without a common divisor with `count`, near its golden section.
fn leap(count: u64) -> u64 {
    let near = (u128::from(count) * 618 / 1000).max(1);
    let near = u64::try_from(near).unwrap_or(1);
    (near..near + count)
        .find(|&step| divisor(step, count) == 1)
        .unwrap_or(1)
}

fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// Bytes that an audit should read beside a pass of so many bytes: a quarter of all. Of a sync of several disks, each has
/// its share of the least.
fn wanted_bytes(read_bytes: u64, disks: u64) -> u64 {
    (read_bytes / 3).max(IDLE_BYTES / disks)
}

/// How long an audit may take in a sync that has taken so long: a quarter of all.
fn time_limit(elapsed: Duration) -> Duration {
    (elapsed / 3).max(IDLE_TIME)
}

impl<O: Observer> Reading<'_, '_, O> {
    /// Compares a part of what the tracker calls unchanged. Where it has missed something, it no longer vouches for the
    /// disk.
    pub(super) fn audit(&mut self) -> Result<()> {
        let limit = time_limit(self.job.begun.elapsed());
        let begun = Instant::now();
        let mut audits = self.audits();
        loop {
            let plans = self.next_plans(&mut audits);
            if plans.is_empty() {
                break;
            }
            let mut comparing = Comparing {
                plans: &plans,
                audits: &mut audits,
            };
            self.run(&plans, &mut comparing)?;
            if begun.elapsed() >= limit {
                break;
            }
        }
        audits.into_iter().try_for_each(|audit| self.end_audit(audit))?;
        self.audit_took = begun.elapsed();
        Ok(())
    }

    /// The audits of all disks that were read as the tracker said.
    fn audits(&self) -> Vec<Audit> {
        let disks = self.tracked();
        let share = u64::try_from(disks.len()).unwrap_or(1).max(1);
        let of = |disk: usize| {
            let turns = Turns::of(self.ids[disk].geometry());
            Audit {
                disk,
                turns,
                position: self.audit_position(disk) % turns.count,
                left: turns.count,
                wanted_bytes: wanted_bytes(self.read_bytes[disk], share),
                bytes: 0,
                differing: Vec::new(),
            }
        };
        disks.into_iter().map(of).collect()
    }

    /// What each audit that is not done reads next.
    fn next_plans(&self, audits: &mut [Audit]) -> Vec<Planned> {
        let mut plans = Vec::new();
        for audit in audits.iter_mut() {
            let Ok(tracking) = self.trackings.vouching(audit.disk) else {
                continue;
            };
            let clusters = audit.next(tracking.dirty());
            let geometry = self.ids[audit.disk].geometry();
            let plan = Plan::new(geometry, clusters, Method::Tracked, "audit");
            if plan.bytes() > 0 {
                audit.bytes += plan.bytes();
                plans.push((audit.disk, plan));
            }
        }
        plans
    }

    /// Notes what an audit has read, and judges what it has found.
    fn end_audit(&mut self, audit: Audit) -> Result<()> {
        let (disk, id) = (audit.disk, self.ids[audit.disk]);
        self.read_bytes[disk] += audit.bytes;
        self.image.note_audit(
            id,
            Audited {
                bytes: audit.bytes,
                position: audit.position,
            },
        )?;
        let differing = self.without_damaged(disk, audit.differing)?;
        let Ok(tracking) = self.trackings.vouching(disk) else {
            return Ok(());
        };
        if differing.is_empty() {
            return Ok(());
        }
        let mut left = Bitmap::empty(id.geometry().cluster_count());
        differing.into_iter().for_each(|cluster| left.insert(cluster));
        match Seen::judge(&mut left, |deadline| tracking.settle(deadline)) {
            Seen::All => {}
            Seen::Unknown(why) => self.trackings.doubt(
                disk,
                format!("the audit could not tell whether the tracker had missed writes: {why}"),
            ),
            Seen::NotAll => {
                let doubt = self.report_missed(disk, &left);
                if let Err(error) = tracking.fail(&doubt) {
                    let error = error.full_message();
                    tracing::warn!("cannot record that the tracker has missed writes: {error}");
                }
                self.trackings.doubt(disk, doubt);
            }
        }
        Ok(())
    }

    /// Warns of clusters that the tracker has missed; returns the reason for a scan.
    fn report_missed(&self, disk: usize, clusters: &Bitmap) -> String {
        let (source, id) = (&self.job.disks[disk], self.ids[disk]);
        let first = clusters.ranges(0).next().map_or(0, |range| range.start);
        let doubt = format!(
            "the tracker had missed writes: {} of the audited clusters differ, the first at byte {}",
            clusters.count(),
            id.geometry().cluster_offset(first)
        );
        self.job.observer.tracker_missed();
        self.job.observer.warn(&format!(
            "{}: {doubt}. So all of the disk is read in this sync. Was it written to around the kernel's block layer (the \
             file behind a loop device, a disk shared with another machine)? If not, please report this as a fault of smc",
            source.meta.name
        ));
        doubt
    }

    /// Clusters that differ from what can be read of them in the store. The others are stored anew.
    fn without_damaged(&mut self, disk: usize, differing: Vec<u64>) -> Result<Vec<u64>> {
        let id = self.ids[disk];
        let Some(base) = self.image.base(id) else {
            return Ok(differing);
        };
        let (mut whole, mut damaged) = (Vec::new(), Vec::new());
        for cluster in differing {
            match base.digests(cluster..cluster + 1)?[..] {
                [Some(_)] => whole.push(cluster),
                _ => damaged.push(cluster..cluster + 1),
            }
        }
        let Some(first) = damaged.first().cloned() else {
            return Ok(whole);
        };
        let leaf = first.start / CLUSTERS_OF_LEAF;
        let anew = self.image.to_store_anew(id, leaf..leaf + 1);
        damaged.extend(anew.within(|| named(&self.job.disks[disk]))?);
        self.pass(&[(
            disk,
            Plan::tracked(id.geometry(), &std::iter::empty(), &damaged, DAMAGED),
        )])?;
        Ok(whole)
    }
}

/// Clusters below a leaf of an image's tree.
const CLUSTERS_OF_LEAF: u64 = 256;

/// The audit of one disk.
#[derive(Debug)]
struct Audit {
    /// Its place in the job.
    disk: usize,
    turns: Turns,
    /// The run that comes next.
    position: u64,
    /// How many runs have not had their turn in this sync.
    left: u64,
    wanted_bytes: u64,
    bytes: u64,
    /// Clusters that are not as in the image before.
    differing: Vec<u64>,
}

impl Audit {
    /// The clusters to compare next; none when it has read enough.
    fn next(&mut self, dirty: &Bitmap) -> Vec<Range<u64>> {
        let mut clusters = Vec::new();
        while clusters.is_empty() && self.left > 0 && self.bytes < self.wanted_bytes {
            for _ in 0..RUNS_AT_ONCE.min(self.left) {
                clusters.extend(clean(self.turns.run(self.position), dirty));
                self.position = (self.position + 1) % self.turns.count;
                self.left -= 1;
            }
        }
        clusters
    }
}

/// Notes what differs, and stores nothing.
struct Comparing<'a> {
    plans: &'a [Planned],
    audits: &'a mut [Audit],
}

impl Sink for Comparing<'_> {
    fn push(&mut self, pass: usize, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        let disk = self.plans[pass].0;
        if let Some(audit) = self.audits.iter_mut().find(|audit| audit.disk == disk) {
            audit.differing.push(update.index);
        }
        Ok(())
    }
}

/// The parts of a run whose clusters are not in the set.
fn clean(run: Range<u64>, dirty: &Bitmap) -> Vec<Range<u64>> {
    let end = run.end.min(dirty.clusters());
    let clean = (run.start..end).filter(|&cluster| !dirty.contains(cluster));
    clean.map(|cluster| cluster..cluster + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use imagefmt::ClusterSize;
    use std::collections::BTreeSet;

    #[test]
    fn every_cluster_has_its_turn_once() {
        for mib in [1, 2, 3, 7, 64, 100, 1001] {
            for size in [ClusterSize::K16, ClusterSize::K64, ClusterSize::K256] {
                let geometry = Geometry::new(mib * RUN_BYTES - 5, size).unwrap();
                let turns = Turns::of(geometry);
                let runs = (0..turns.count).map(|position| turns.run(position));
                let clusters: BTreeSet<u64> = runs.flatten().collect();
                assert_eq!(clusters.len() as u64, turns.count * turns.clusters);
                assert!((0..geometry.cluster_count()).all(|cluster| clusters.contains(&cluster)));
                assert_eq!(turns.run(turns.count), turns.run(0), "then it begins again");
            }
        }
    }

    #[test]
    fn turns_of_the_largest_disk_do_not_overflow() {
        let geometry = Geometry::new(1 << 60, ClusterSize::K16).unwrap();
        let turns = Turns::of(geometry);
        assert!(turns.run(turns.count - 1).end <= geometry.cluster_count());
    }

    #[test]
    fn an_audit_reads_a_quarter_of_all_or_a_little() {
        assert_eq!(wanted_bytes(0, 1), IDLE_BYTES);
        assert_eq!(wanted_bytes(0, 4), IDLE_BYTES / 4);
        assert_eq!(wanted_bytes(3 << 30, 4), 1 << 30);
        assert_eq!(time_limit(Duration::ZERO), IDLE_TIME);
        assert_eq!(time_limit(Duration::from_secs(30)), Duration::from_secs(10));
    }

    #[test]
    fn what_is_read_anyway_is_not_audited() {
        let mut dirty = Bitmap::empty(20);
        [1, 17].into_iter().for_each(|cluster| dirty.insert(cluster));
        let all = |run| clean(run, &dirty).into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(all(0..4), [0, 2, 3]);
        assert_eq!(all(16..32), [16, 18, 19]);
    }
}
