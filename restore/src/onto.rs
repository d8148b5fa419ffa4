//! Making a device or file equal to a disk of an image by writing only what differs.
//!
//! What differs is found by reading the device, or by comparing the image with the one that the device is known to hold. Either way,
//! what was written is read back, and compared by digests.

use crate::evidence::{Evidence, Proof, Wrote};
use crate::held::{Held, Holding};
use crate::pieces::extents_in;
use crate::pipeline::Pipeline;
use crate::target::Target;
use crate::write::{self, Piece, Written, pieces_of, write_ranges};
use anyhow::{Context, anyhow, bail};
use blockio::{Chunk, Ranges, ReadOptions, SequentialReader};
use cli::exit::{Advise, advised};
use cli::interrupt::Interrupt;
use cli::progress::Progress;
use imagefmt::{Base, Digest, Disk, Error, ErrorKind};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};

/// How often a target is compared that is written to meanwhile.
const COMPARED_MAX: usize = 3;

/// Ranges that are kept apart; of more, those that are nearest to each other are taken as one, so that memory stays bounded.
const RANGES_MAX: usize = 1 << 20;

/// Refuses a disk that cannot be written whole, as far as its map shows it.
///
/// # Errors
/// A map that is damaged; a cluster that could not be read at the source.
pub fn check_readable(disk: &Disk) -> anyhow::Result<()> {
    let unreadable = disk
        .unreadable_at_source(1)
        .map_err(anyhow::Error::from)
        .advise("nothing was written; `smc-image verify` shows all that is damaged")?;
    let Some(first) = unreadable.first() else {
        return Ok(());
    };
    let what = format!(
        "{}: cluster {} (byte {}) was unreadable at the source",
        disk.label(),
        disk.geometry().cluster_at(first.start),
        first.start
    );
    Err(Error::new(ErrorKind::Unreadable, what).into())
        .advise("nothing was written: the image lacks part of the disk; restore an older or newer one")
}

/// Reads all data that the image has in `ranges`, and checks its digests: whoever writes them to a target afterwards does not find half-way
/// that the image is damaged.
///
/// # Errors
/// A cluster that is damaged or cannot be read; an interrupt.
pub fn check_data(disk: &Disk, ranges: &Ranges, interrupt: Option<&Interrupt>) -> anyhow::Result<()> {
    let progress = Progress::bytes(ranges.bytes(), format!("check {}", disk.label()));
    let pieces = ranges
        .iter()
        .flat_map(|range| extents_in(disk, range))
        .flat_map(|extent| pieces_of(extent, disk.size_bytes()))
        .filter(|piece| piece.as_ref().map_or(true, |piece| piece.data));
    let worker = || {
        let mut buffer = Vec::new();
        move |Piece { range, .. }: Piece| {
            buffer.resize(usize::try_from(range.end - range.start)?, 0);
            disk.read_at(range.start, &mut buffer)?;
            Ok(buffer.len())
        }
    };
    let read = Pipeline::on_all_cores(interrupt).run(pieces, worker, |len| {
        progress.advance(len as u64);
        Ok(())
    });
    read.map_err(|error| match error.is::<Error>() {
        true => advised(
            error,
            "nothing was written; `smc-image verify` shows all that is damaged",
        ),
        false => error,
    })
}

/// Where a target differs from a disk, and what was seen of the target when that was found.
#[derive(Debug)]
pub struct Difference {
    /// The clusters that differ.
    pub ranges: Ranges,
    /// When all of the target was read last.
    pub compared: Timestamp,
    evidence: Option<Evidence>,
}

impl Difference {
    /// What differs from what a target is believed to hold.
    pub fn believed(ranges: Ranges, holding: &Holding) -> Self {
        Self {
            ranges,
            compared: holding.compared,
            evidence: holding.evidence.clone(),
        }
    }

    /// Why it is known what the target holds once it was brought to `disk`.
    pub fn proof(self, disk: &Disk, target: &Target) -> Proof {
        let is_aligned = self.ranges.end() <= write::aligned_end(disk, target.device.alignment());
        Proof {
            compared: self.compared,
            evidence: self.evidence,
            wrote: match is_aligned {
                true => Wrote::Exactly(self.ranges.bytes()),
                false => Wrote::Something,
            },
        }
    }

    fn is_as_it_was(&self, target: &Target) -> anyhow::Result<bool> {
        Ok(self.evidence == Evidence::of(target)?)
    }
}

/// Where a device differs from a disk, found by reading all of the device that the disk is written to.
///
/// # Errors
/// A device that cannot be read, that is written to or changes its size meanwhile; digests that the store cannot read; an interrupt.
pub fn differing_from_device(
    disk: &Disk,
    target: &Target,
    interrupt: Option<&Interrupt>,
) -> anyhow::Result<Difference> {
    let path = target.device.path().display();
    let progress = Progress::bytes(disk.size_bytes(), format!("compare {path}"));
    let whole = Ranges::from(0..disk.size_bytes());
    // What is still in the page cache would be written meanwhile.
    target.file.sync_all().with_context(|| format!("flush {path}"))?;
    let compared = Timestamp::now();
    let evidence = Evidence::of(target)?;
    let ranges = compare(disk, target, &whole, interrupt, &progress)
        .with_context(|| format!("compare {path} with {}", disk.label()))?;
    let found = Difference {
        ranges,
        compared,
        evidence,
    };
    if !found.is_as_it_was(target)? {
        bail!("{path} was written to while it was compared: another program uses it");
    }
    Ok(found)
}

/// For the moment before the first write: what differs now if the target was written to since `found`; otherwise nothing.
///
/// # Errors
/// As for [`differing_from_device`] and [`check_data`]; a target that is written to again and again.
pub fn found_again(
    disk: &Disk,
    target: &Target,
    found: &Difference,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<Difference>> {
    target.check_in_place()?;
    if found.is_as_it_was(target)? {
        return Ok(None);
    }
    for _ in 0..COMPARED_MAX {
        let found = differing_from_device(disk, target, Some(interrupt))?;
        check_data(disk, &found.ranges, Some(interrupt))?;
        if found.is_as_it_was(target)? {
            return Ok(Some(found));
        }
    }
    let path = target.device.path().display();
    Err(anyhow!(
        "{path} is written to again and again: another program uses it"
    ))
    .advise("nothing was written; end what writes to it")
}

/// Where a disk differs from another one of the same size, found in their maps alone.
///
/// # Errors
/// Maps that the store cannot read; disks of different sizes or cluster sizes.
pub fn differing_from_disk(disk: &Disk, other: &Disk) -> anyhow::Result<Ranges> {
    if disk.geometry() != other.geometry() {
        bail!("{} and {} are not of one size", disk.label(), other.label());
    }
    let size = disk.size_bytes();
    let mut found = Collected::new(RANGES_MAX);
    disk.each_difference(other, &mut |range| {
        found.push(range.start..range.end.min(size));
        ControlFlow::Continue(())
    })?;
    Ok(found.ranges())
}

/// Writes what a disk has in `ranges`, and makes it durable. That it begins is written down before, and taken back if nothing was
/// written. `begun` is set before the first byte may change.
///
/// # Errors
/// As for [`write_ranges`]; what cannot be written down.
pub fn write(
    disk: &Disk,
    target: &Target,
    ranges: &Ranges,
    held: &mut Held,
    begun: &AtomicBool,
    interrupt: &Interrupt,
) -> anyhow::Result<Written> {
    let path = target.device.path().display();
    interrupt.check()?;
    held.begin(disk.label())?;
    let progress = Progress::bytes(ranges.bytes(), format!("write {path}"));
    let place = write::Target {
        file: &target.file,
        alignment: target.device.alignment(),
        is_zero: false,
        begun,
    };
    let written = write_ranges(disk, ranges, place, interrupt, &progress)
        .with_context(|| format!("restore {} to {path}", disk.label()));
    if written.is_err()
        && !begun.load(Ordering::Relaxed)
        && let Err(error) = held.take_back()
    {
        // Then it says that a restore was cut off, and the next one reads all of it.
        tracing::warn!("{error:#}");
    }
    written
}

/// Reads `ranges` of the device back, and compares the digest of each cluster with the image's.
///
/// # Errors
/// As for [`differing_from_device`]; a cluster that is not as it was written.
pub fn verify(disk: &Disk, target: &Target, ranges: &Ranges, interrupt: &Interrupt) -> anyhow::Result<()> {
    let path = target.device.path().display();
    let progress = Progress::bytes(ranges.bytes(), format!("verify {path}"));
    let differing = compare(disk, target, ranges, Some(interrupt), &progress)
        .with_context(|| format!("read back {path}"))?;
    match differing.iter().next() {
        None => Ok(()),
        Some(first) => bail!(
            "{path} does not hold what was written to it: it differs at byte {}",
            first.start
        ),
    }
}

/// Reads ranges of whole clusters and gives those that do not have the digests of the disk.
fn compare(
    disk: &Disk,
    target: &Target,
    ranges: &Ranges,
    interrupt: Option<&Interrupt>,
    progress: &Progress,
) -> anyhow::Result<Ranges> {
    if ranges.is_empty() {
        return Ok(ranges.clone());
    }
    let options = ReadOptions {
        ranges: Some(ranges.clone()),
        ..ReadOptions::default()
    };
    let base = Base::from(disk.clone());
    let chunks = SequentialReader::new(&target.device, &options)?.map(|chunk| Ok(chunk?));
    let worker = || {
        let base = &base;
        move |chunk: Chunk| Ok((chunk.index(), chunk.len(), differing_in(disk, base, &chunk)?))
    };
    let mut found = Collected::new(RANGES_MAX);
    // The device answers in any order.
    let mut waiting = BTreeMap::new();
    let (mut next, mut read_bytes) = (0, 0);
    Pipeline::on_all_cores(interrupt).run(chunks, worker, |(index, len, differing)| {
        waiting.insert(index, differing);
        read_bytes += len as u64;
        progress.advance(len as u64);
        while let Some(differing) = waiting.remove(&next) {
            differing.into_iter().for_each(|range| found.push(range));
            next += 1;
        }
        Ok(())
    })?;
    target.device.check_unchanged()?;
    if read_bytes != ranges.bytes() {
        bail!("only {read_bytes} of {} bytes were read", ranges.bytes());
    }
    Ok(found.ranges())
}

/// The clusters of a chunk that do not have the digests of the disk.
fn differing_in(disk: &Disk, base: &Base, chunk: &Chunk) -> anyhow::Result<Vec<Range<u64>>> {
    let geometry = disk.geometry();
    let len = geometry.cluster_size().byte_len();
    let first = geometry.cluster_at(chunk.offset());
    let wanted = base.digests(first..first + chunk.len().div_ceil(len) as u64)?;
    let mut differing = Vec::new();
    for ((bytes, wanted), index) in chunk.chunks(len).zip(wanted).zip(first..) {
        let start = geometry.cluster_offset(index);
        let Some(wanted) = wanted else {
            // It says what is wrong there.
            disk.read_at(start, &mut vec![0; bytes.len()])?;
            bail!("{}: the digest of cluster {index} cannot be read", disk.label());
        };
        if Digest::of_cluster(bytes) != wanted {
            differing.push(start..start + bytes.len() as u64);
        }
    }
    Ok(differing)
}

/// Ascending ranges, of which a bounded number is kept.
struct Collected {
    ranges: Vec<Range<u64>>,
    max: usize,
    /// Ranges that are no further apart than this are one.
    gap: u64,
}

impl Collected {
    fn new(max: usize) -> Self {
        Self {
            ranges: Vec::new(),
            max,
            gap: 0,
        }
    }

    fn push(&mut self, range: Range<u64>) {
        match self.ranges.last_mut() {
            Some(last) if range.start - last.end <= self.gap => last.end = range.end,
            _ => self.ranges.push(range),
        }
        while self.ranges.len() > self.max {
            self.gap = (self.gap * 2).max(64 << 10);
            let kept = std::mem::take(&mut self.ranges);
            for range in kept {
                match self.ranges.last_mut() {
                    Some(last) if range.start - last.end <= self.gap => last.end = range.end,
                    _ => self.ranges.push(range),
                }
            }
        }
    }

    fn ranges(self) -> Ranges {
        self.ranges.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_ranges_are_kept_and_none_is_lost() {
        const CLUSTER: u64 = 64 << 10;
        let pushed: Vec<Range<u64>> = (0..1000)
            .map(|n| n * 3 * CLUSTER..(n * 3 + 1) * CLUSTER)
            .collect();
        let mut collected = Collected::new(10);
        pushed.iter().cloned().for_each(|range| collected.push(range));
        assert!(collected.ranges.len() <= 10);
        let kept = collected.ranges();
        for range in pushed {
            assert!(
                kept.iter()
                    .any(|kept| kept.start <= range.start && range.end <= kept.end)
            );
        }
        let mut apart = Collected::new(10);
        [0..4, 4..8, 16..20]
            .into_iter()
            .for_each(|range| apart.push(range));
        assert_eq!(apart.ranges().iter().collect::<Vec<_>>(), [0..8, 16..20]);
    }
}
