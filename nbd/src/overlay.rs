//! A writable view of an export that never changes it.
//!
//! What is written lies in slots of a [`Space`], one for each 64 KiB cluster that has any data;
//! zeros have no slot where they can do without. Each sector of 512 bytes is in one of four states
//! ([`State`]): the base's, data in the cluster's slot, zeros, or zeros that have space there.
//!
//! **Index.** Clusters with a slot are entries of sorted maps: as many entries as slots at most.
//! Zeros without a slot are ranges of sectors ([`Zeros`]), so that zeroing 4 GiB or the whole of
//! 16 TiB is one entry, and adjoining ranges become one. Both are bounded for all overlays of a
//! space together, the ranges by a [`Budget`](zeros::Budget) of one for every four slots: a client
//! that zeroes every other sector of a large disk gets the error that there is no space (a trim, being a
//! hint, is ignored there), or, where the cluster has a slot, keeps that. No work for a request
//! grows with its length beyond that: clusters without a slot are not visited one by one, other
//! than to read or to allocate them.
//!
//! **Locks.** The state of a cluster and what its slot holds are guarded by the lock of its shard.
//! A read copies, a write changes one cluster after the other under it: each sector is read and
//! written whole. Zeroing changes all its clusters at once, holding the locks of their shards,
//! which are always taken in the same order; the lock of the zeros is only taken last. The base is
//! never read under a lock. A write that covers sectors in part reads them from the base
//! beforehand, if they are the base's then: the base does not change, and a sector that has become
//! something else meanwhile is never the base's again, so that what was read is either right or
//! not needed. A read that found sectors to be the base's reads them after it let go of the lock:
//! what was written there meanwhile overlaps it in time, and either order is right.

mod allocation;
mod cluster;
mod space;
#[cfg(test)]
mod tests;
mod zeros;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::cluster::{CLUSTER_LEN, Entry, Part, SECTOR_LEN, Sectors, State};
use self::cluster::{clusters, outside, parts, remainder, within};
pub use self::space::Space;
use self::zeros::Zeros;
use crate::{Export, ExportError, Extent, FailureKind, HOLE, Ready, Zeroing};

const SHARDS: usize = 64;

/// The clusters with a slot whose number is the shard's modulo [`SHARDS`].
type Shard = BTreeMap<u64, Entry>;

/// A writable view of an export that never changes it: reads see what was written to the overlay,
/// else the base. What was written takes up space of a [`Space`] until the overlay is dropped.
///
/// - Writes work at any byte. Where one covers a sector of 512 bytes in part and the base has to
///   supply the rest and cannot, it fails and changes nothing; one that covers it whole succeeds
///   and heals the view.
/// - Writing and zeroing fail with [`FailureKind::NoSpace`] when the space is used up; then each
///   sector in the range of the request is either as before or as it was to become, and all others
///   are as they were. What was written or allocated before never fails for want of space.
/// - Trimmed sectors read as zeros. Their space, and that of zeroed ones, is freed once a whole cluster
///   of 64 KiB needs none; a slot on its way back is not free yet for what is written meanwhile.
/// - Zeroing is fast unless it has to allocate ([`Zeroing::no_hole`]) from a file system that
///   cannot do that.
/// - Nothing outlives the process: a flush has nothing to do.
/// - Meta contexts beside `base:allocation` are not answered, for what they say of the base need
///   not be true of the overlay.
pub struct Overlay {
    base: Arc<dyn Export>,
    size: u64,
    space: Arc<Space>,
    shards: Box<[RwLock<Shard>]>,
    zeros: RwLock<Zeros>,
    /// Set before the lock is let go of under which the first change was made.
    touched: AtomicBool,
}

/// A sector that a write covers in part, and that was the base's.
struct Edge {
    sector: u64,
    bytes: [u8; SECTOR_LEN],
}

/// A range of bytes, cut at the borders of sectors.
struct Cut {
    /// Bytes before the first whole sector; all of them if there is none.
    head: Range<u64>,
    /// Whole sectors.
    whole: Range<u64>,
    /// Bytes behind the last whole sector.
    tail: Range<u64>,
}

impl Overlay {
    /// A view in which nothing differs from `base` yet. What will be written goes to `space`.
    pub fn new(base: Arc<dyn Export>, space: &Arc<Space>) -> Self {
        Self {
            size: base.size_bytes(),
            base,
            space: Arc::clone(space),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            zeros: RwLock::default(),
            touched: AtomicBool::new(false),
        }
    }

    /// Whether nothing was ever written, zeroed or trimmed.
    pub fn is_untouched(&self) -> bool {
        !self.touched.load(Ordering::Acquire)
    }

    fn touch(&self) {
        self.touched.store(true, Ordering::Release);
    }

    fn shard(&self, cluster: u64) -> &RwLock<Shard> {
        &self.shards[remainder(cluster, SHARDS)]
    }

    /// The states of a cluster's sectors; `shard` is the cluster's.
    fn sectors(&self, shard: &Shard, cluster: u64) -> Sectors {
        match shard.get(&cluster) {
            Some(entry) => entry.sectors(),
            None => read(&self.zeros).sectors(cluster),
        }
    }

    /// Copies what the overlay has of one cluster and adds the rest, as ranges of `buf`, to
    /// `missing`.
    fn read_part(
        &self,
        part: &Part,
        buf: &mut [u8],
        missing: &mut Vec<Range<usize>>,
    ) -> Result<(), ExportError> {
        let shard = read(self.shard(part.cluster));
        let entry = shard.get(&part.cluster);
        for (state, run) in self.sectors(&shard, part.cluster).runs(part.sectors()) {
            let at = part.within.start.max(run.start * SECTOR_LEN);
            let end = part.within.end.min(run.end * SECTOR_LEN);
            let start = part.buffer.start + (at - part.within.start);
            let place = start..start + (end - at);
            match (state, entry) {
                (State::Data, Some(entry)) => self
                    .space
                    .read(entry.slot, at, &mut buf[place])
                    .map_err(|error| self.space.failure(part.offset(), &error))?,
                (State::Hole | State::Room, _) => buf[place].fill(0),
                _ => join(missing, place),
            }
        }
        Ok(())
    }

    /// As much of a range in one cluster as is known without waiting; `None` if all of it is
    /// the base's.
    fn try_read_part(&self, part: &Part, buf: &mut [u8]) -> Option<Ready> {
        let Ok(shard) = self.shard(part.cluster).try_read() else {
            return Some(Ready::No);
        };
        let entry = shard.get(&part.cluster);
        let sectors = match (entry, self.zeros.try_read()) {
            (Some(entry), _) => entry.sectors(),
            (None, Ok(zeros)) => zeros.sectors(part.cluster),
            (None, Err(_)) => return Some(Ready::No),
        };
        let range = part.sectors();
        let (state, end) = sectors.run(&range);
        match (state, entry) {
            _ if end < range.end => Some(Ready::No),
            (State::Base, _) => None,
            (State::Data, Some(entry)) if self.space.try_read(entry.slot, part.within.start, buf) => {
                Some(Ready::Data)
            }
            (State::Data, _) => Some(Ready::No),
            (State::Hole | State::Room, _) => Some(Ready::Zeros),
        }
    }

    /// Reads from the base what a write of `range` needs of it: the sectors that it covers in part
    /// and that are the base's. The export's last sector may be short, and is covered whole by
    /// what reaches the end.
    fn edges(&self, range: &Range<u64>) -> Result<Vec<Edge>, ExportError> {
        let unit = SECTOR_LEN as u64;
        let head = (!range.start.is_multiple_of(unit)).then_some(range.start / unit);
        let tail = (!range.end.is_multiple_of(unit) && range.end < self.size).then_some(range.end / unit);
        let mut edges = Vec::new();
        for sector in head.into_iter().chain(tail.filter(|_| tail != head)) {
            if self.state(sector) == State::Base {
                let mut bytes = [0; SECTOR_LEN];
                let length = bytes
                    .len()
                    .min(usize::try_from(self.size - sector * unit).unwrap_or(usize::MAX));
                self.base.read_at(sector * unit, &mut bytes[..length])?;
                edges.push(Edge { sector, bytes });
            }
        }
        Ok(edges)
    }

    fn state(&self, sector: u64) -> State {
        let range = sector..sector + 1;
        let cluster = clusters(&range).start;
        let shard = read(self.shard(cluster));
        self.sectors(&shard, cluster).run(&within(cluster, &range)).0
    }

    /// Writes `data`, of which the base's part was read beforehand.
    fn write_range(&self, offset: u64, data: &[u8], edges: &[Edge]) -> Result<(), ExportError> {
        for part in parts(offset, data.len()) {
            self.change(part.cluster, part.offset(), |entry| {
                self.write_part(entry, &part, &data[part.buffer.clone()], edges)
            })?;
        }
        Ok(())
    }

    /// Changes the entry of a cluster; one that has none gets it, and keeps it if the change
    /// succeeds. `offset` is the byte to name in errors.
    fn change(
        &self,
        cluster: u64,
        offset: u64,
        change: impl FnOnce(&mut Entry) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let mut shard = write(self.shard(cluster));
        if let Some(entry) = shard.get_mut(&cluster) {
            return change(entry);
        }
        let mut entry = Entry::new(self.space.take(offset)?, self.sectors(&shard, cluster));
        let result = change(&mut entry);
        if result.is_ok() {
            shard.insert(cluster, entry);
            self.touch();
        } else {
            self.space.release(vec![entry.slot]);
        }
        result
    }

    /// Writes to a slot. Sectors become data only after all was written: until then they read as
    /// before, whatever the slot holds.
    fn write_part(
        &self,
        entry: &mut Entry,
        part: &Part,
        data: &[u8],
        edges: &[Edge],
    ) -> Result<(), ExportError> {
        let sectors = part.sectors();
        let mut done = 0;
        while done < data.len() {
            let at = part.within.start + done;
            let step = self.step(part, at);
            let piece = &data[done..done + step];
            let written = match self.merged(entry, part.cluster, at, piece, edges) {
                Some(sector) => self
                    .space
                    .write(entry.slot, at / SECTOR_LEN * SECTOR_LEN, &sector),
                None => self.space.write(entry.slot, at, piece),
            };
            written.map_err(|error| self.space.failure(part.offset(), &error))?;
            done += step;
        }
        entry.set(&sectors, State::Data);
        Ok(())
    }

    /// Bytes from `at` in the part's cluster that can be written in one go: up to the end of a
    /// sector covered in part, or all whole ones.
    fn step(&self, part: &Part, at: usize) -> usize {
        let left = part.within.end - at;
        let reaches_end = part.offset() + part.within.len() as u64 == self.size;
        match at % SECTOR_LEN {
            0 if reaches_end => left,
            0 if left >= SECTOR_LEN => left / SECTOR_LEN * SECTOR_LEN,
            start => left.min(SECTOR_LEN - start),
        }
    }

    /// The new bytes of a whole sector, if `piece` covers it in part and the slot does not hold
    /// the rest.
    fn merged(
        &self,
        entry: &Entry,
        cluster: u64,
        at: usize,
        piece: &[u8],
        edges: &[Edge],
    ) -> Option<[u8; SECTOR_LEN]> {
        let start = at % SECTOR_LEN;
        let sector = at / SECTOR_LEN..at / SECTOR_LEN + 1;
        let (state, _) = entry.sectors().run(&sector);
        if (start == 0 && piece.len() >= SECTOR_LEN) || state == State::Data {
            return None;
        }
        // No edge: the sector is zeros, or the last one, and covered whole.
        let number = outside(cluster, &sector).start;
        let edge = edges
            .iter()
            .find(|edge| edge.sector == number && state == State::Base);
        let mut bytes = edge.map_or([0; SECTOR_LEN], |edge| edge.bytes);
        bytes[start..start + piece.len()].copy_from_slice(piece);
        Some(bytes)
    }

    fn cut(&self, range: &Range<u64>) -> Cut {
        let unit = SECTOR_LEN as u64;
        let first = range.start.div_ceil(unit);
        let last = match range.end {
            end if end == self.size => end.div_ceil(unit),
            end => end / unit,
        };
        if first >= last {
            let head = range.clone();
            return Cut {
                head,
                whole: 0..0,
                tail: 0..0,
            };
        }
        Cut {
            head: range.start..first * unit,
            whole: first..last,
            tail: (last * unit).min(range.end)..range.end,
        }
    }

    /// Turns whole sectors into zeros without space, all at once. False if there is no room to
    /// remember those without a slot: these have not changed then, and the others only if `partly`.
    fn clear(&self, sectors: &Range<u64>, partly: bool) -> bool {
        let clusters = clusters(sectors);
        let mut shards = self.lock(&clusters);
        let slots: u64 = shards
            .iter()
            .map(|shard| shard.range(clusters.clone()).count() as u64)
            .sum();
        let mut zeros = write(&self.zeros);
        // What has a slot is remembered there.
        let remembered =
            slots == clusters.end - clusters.start || zeros.insert(sectors.clone(), &self.space.ranges);
        if !remembered && !partly {
            return false;
        }
        let mut unused = Vec::new();
        for shard in &mut shards {
            unused.extend(self.clear_shard(shard, &clusters, sectors, &mut zeros));
        }
        if remembered || slots > 0 {
            self.touch();
        }
        drop(zeros);
        drop(shards);
        self.space.release(unused);
        remembered
    }

    /// The locks of all shards that have some of these clusters.
    fn lock(&self, clusters: &Range<u64>) -> Vec<RwLockWriteGuard<'_, Shard>> {
        let has_some = |shard: u64| {
            let ahead = (shard + SHARDS as u64 - clusters.start % SHARDS as u64) % SHARDS as u64;
            ahead < clusters.end - clusters.start
        };
        let chosen = (0..).zip(&self.shards).filter(|(number, _)| has_some(*number));
        chosen.map(|(_, shard)| write(shard)).collect()
    }

    /// The part of [`clear`](Self::clear) for clusters with a slot in one shard. Returns the slots
    /// that are not needed any more, without their entries.
    fn clear_shard(
        &self,
        shard: &mut Shard,
        clusters: &Range<u64>,
        sectors: &Range<u64>,
        zeros: &mut Zeros,
    ) -> Vec<u32> {
        let mut unused = Vec::new();
        for (&cluster, entry) in shard.range_mut(clusters.clone()) {
            entry.set(&within(cluster, sectors), State::Hole);
            if entry.sectors().is_spaceless() && self.remember(cluster, entry.sectors(), zeros) {
                unused.push(cluster);
            }
        }
        let slots = unused.iter().filter_map(|cluster| shard.remove(cluster));
        slots.map(|entry| entry.slot).collect()
    }

    /// Adds a cluster's zeros to those that need no slot. False if there is no room for them all;
    /// the ones that were added do no harm beside the slot.
    fn remember(&self, cluster: u64, sectors: Sectors, zeros: &mut Zeros) -> bool {
        sectors
            .all_runs()
            .filter(|(state, _)| state.is_zero())
            .all(|(_, run)| zeros.insert(outside(cluster, &run), &self.space.ranges))
    }

    /// Turns whole sectors into zeros that have space.
    fn allocate(&self, sectors: &Range<u64>) -> Result<(), ExportError> {
        for cluster in clusters(sectors) {
            let range = within(cluster, sectors);
            let offset = outside(cluster, &range).start * SECTOR_LEN as u64;
            self.change(cluster, offset, |entry| {
                for (state, run) in entry.sectors().runs(range.clone()) {
                    if !matches!(state, State::Data | State::Room) {
                        self.space
                            .allocate(entry.slot, &(run.start * SECTOR_LEN..run.end * SECTOR_LEN))
                            .map_err(|error| self.space.failure(offset, &error))?;
                    }
                }
                entry.set(&range, State::Room);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Refuses what is known beforehand to fail, so that it does not use up the space first.
    fn check_room(&self, range: &Range<u64>) -> Result<(), ExportError> {
        let unit = CLUSTER_LEN as u64;
        let clusters = range.start / unit..range.end.div_ceil(unit);
        let slots: u64 = self
            .shards
            .iter()
            .map(|shard| read(shard).range(clusters.clone()).count() as u64)
            .sum();
        if clusters.end - clusters.start - slots > self.space.free_bytes() / unit {
            return Err(self.space.exhausted(range.start));
        }
        Ok(())
    }
}

impl Export for Overlay {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        if self.is_untouched() {
            return self.base.read_at(offset, buf);
        }
        let mut missing = Vec::new();
        for part in parts(offset, buf.len()) {
            self.read_part(&part, buf, &mut missing)?;
        }
        for range in missing {
            self.base.read_at(offset + range.start as u64, &mut buf[range])?;
        }
        Ok(())
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Ready {
        if self.is_untouched() {
            return self.base.try_read_at(offset, buf);
        }
        match parts(offset, buf.len()).next() {
            Some(part) if part.buffer.len() == buf.len() => self
                .try_read_part(&part, buf)
                .unwrap_or_else(|| self.base.try_read_at(offset, buf)),
            _ => Ready::No,
        }
    }

    /// What the base has bytes for is reported as data, although a write there needs new space: HOLE
    /// without ZERO is legal, but QEMU (10.0) takes it for zeros when it compares.
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        let reported = |extent: Extent| match extent.flags {
            HOLE => Extent::data(extent.length),
            _ => extent,
        };
        Ok(self
            .allocation(offset, length)?
            .into_iter()
            .map(reported)
            .collect())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.base.cache(offset, length)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        let edges = self.edges(&(offset..offset + data.len() as u64))?;
        self.write_range(offset, data, &edges)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), ExportError> {
        let range = offset..offset + length;
        if how.no_hole {
            if how.fast && !self.space.can_allocate() {
                let message = "the file system of the temporary files cannot allocate without writing zeros";
                return Err(ExportError::new(FailureKind::NotFast, offset, message));
            }
            self.check_room(&range)?;
        }
        let edges = self.edges(&range)?;
        let Cut { head, whole, tail } = self.cut(&range);
        if how.no_hole {
            self.allocate(&whole)?;
        } else if !whole.is_empty() && !self.clear(&whole, false) {
            return Err(self.space.exhausted(offset));
        }
        for side in [head, tail].into_iter().filter(|side| !side.is_empty()) {
            let zeros = [0; 2 * SECTOR_LEN];
            let length = usize::try_from(side.end - side.start).unwrap_or(zeros.len());
            self.write_range(side.start, &zeros[..length], &edges)?;
        }
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let whole = self.cut(&(offset..offset + length)).whole;
        if !whole.is_empty() {
            // A hint: it may be ignored where there is no room for it.
            self.clear(&whole, true);
        }
        Ok(())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let shards = self.shards.iter_mut().map(|shard| shard.get_mut());
        let entries = shards.flat_map(|shard| std::mem::take(shard.unwrap_or_else(PoisonError::into_inner)));
        self.space.release(entries.map(|(_, entry)| entry.slot).collect());
        self.space.ranges.release(read(&self.zeros).len());
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("size", &self.size)
            .field("untouched", &self.is_untouched())
            .finish_non_exhaustive()
    }
}

/// Adds a range behind the others, joined to the last if they touch.
fn join(ranges: &mut Vec<Range<usize>>, range: Range<usize>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

// Every change under these locks is complete after each step: what a panic leaves is usable.

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
