//! Writing all of a disk, data and zeros, from several threads.

use crate::pieces::{cut, extents_in};
use crate::pipeline::Pipeline;
use crate::zero::Zeroer;
use anyhow::Context;
use blockio::{AlignedBuf, Ranges};
use cli::interrupt::Interrupt;
use cli::progress::Progress;
use imagefmt::{Disk, Extent};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes written at a time.
const DATA_BYTES_MAX: u64 = 1 << 20;
/// Bytes zeroed at a time: a request that nobody can interrupt, should the device be slow at it.
const ZERO_BYTES_MAX: u64 = 64 << 20;
/// Longer extents are allocated before they are written.
const RESERVED_BYTES_MIN: u64 = 4 << 20;
/// Threads that write: enough for a device to have something queued while clusters are decompressed.
const WRITERS: usize = 8;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of data.
    pub data_bytes: u64,
    /// Bytes of zeros.
    pub zero_bytes: u64,
    /// How long that took, until it was durable.
    pub took: Duration,
}

/// A file or device that a disk is written to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Open for writing, which may be with O_DIRECT.
    pub file: &'a File,
    /// What O_DIRECT asks of offsets and lengths.
    pub alignment: u64,
    /// Whether all of it reads as zeros already, as a new file does: then zeros are not written.
    pub is_zero: bool,
    /// Set before the first byte of it may change.
    pub begun: &'a AtomicBool,
}

/// A piece of the disk to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub range: Range<u64>,
    pub data: bool,
}

/// Writes all of `disk` to `target`, and makes it durable.
///
/// # Errors
/// As for [`write_ranges`].
pub fn write_disk(
    disk: &Disk,
    target: Target<'_>,
    interrupt: &Interrupt,
    progress: &Progress,
) -> anyhow::Result<Written> {
    let whole = Ranges::from(0..disk.size_bytes());
    write_ranges(disk, &whole, target, interrupt, progress)
}

/// Writes what `disk` has in ranges of whole clusters to the same place of `target`, and makes it durable. The ranges do not reach
/// behind the disk's end.
///
/// # Errors
/// A cluster of the image that is damaged, a failed write, or an interrupt. The target is then incomplete.
pub fn write_ranges(
    disk: &Disk,
    ranges: &Ranges,
    target: Target<'_>,
    interrupt: &Interrupt,
    progress: &Progress,
) -> anyhow::Result<Written> {
    let begun = Instant::now();
    let size = disk.size_bytes();
    let aligned_end = aligned_end(disk, target.alignment);
    let writer = Writer::new(disk, target)?;
    let reserve = |extent: &anyhow::Result<Extent>| extent.iter().for_each(|extent| writer.reserve(extent));
    let pieces = ranges
        .iter()
        .flat_map(|range| extents_in(disk, range))
        .inspect(reserve)
        .flat_map(|extent| pieces_of(extent, aligned_end));
    let worker = || {
        let mut buffer = AlignedBuf::new(usize::try_from(DATA_BYTES_MAX).unwrap_or(usize::MAX));
        let writer = &writer;
        move |piece: Piece| writer.piece(&piece, &mut buffer).map(|()| piece)
    };
    let mut written = Written::default();
    Pipeline::on_threads(WRITERS, interrupt).run(pieces, worker, |piece| {
        let bytes = piece.range.end - piece.range.start;
        *(if piece.data {
            &mut written.data_bytes
        } else {
            &mut written.zero_bytes
        }) += bytes;
        progress.advance(bytes);
        Ok(())
    })?;
    if ranges.end() > aligned_end {
        writer.tail(aligned_end..size)?;
        written.data_bytes += size - aligned_end;
    }
    target.file.sync_all().context("flush the target")?;
    written.took = begun.elapsed();
    Ok(written)
}

/// Up to where O_DIRECT can write a disk; the rest goes through the page cache.
pub(crate) fn aligned_end(disk: &Disk, alignment: u64) -> u64 {
    disk.size_bytes() - disk.size_bytes() % alignment
}

/// An extent in pieces that end at multiples of their greatest length, as far as `end`; an error as it is.
pub(crate) fn pieces_of(
    extent: anyhow::Result<Extent>,
    end: u64,
) -> impl Iterator<Item = anyhow::Result<Piece>> {
    let (extent, error) = match extent {
        Ok(extent) => (Some(extent), None),
        Err(error) => (None, Some(Err(error))),
    };
    let pieces = extent.into_iter().flat_map(move |extent| {
        let data = extent.data;
        let step = if data { DATA_BYTES_MAX } else { ZERO_BYTES_MAX };
        let end = end.min(extent.offset + extent.length);
        cut(extent.offset..end, step).map(move |range| Ok(Piece { range, data }))
    });
    pieces.chain(error)
}

struct Writer<'a> {
    disk: &'a Disk,
    target: Target<'a>,
    zeroer: Zeroer<'a>,
    /// Whether a filesystem allocates what is written.
    is_file: bool,
}

impl<'a> Writer<'a> {
    fn new(disk: &'a Disk, target: Target<'a>) -> anyhow::Result<Self> {
        Ok(Self {
            disk,
            target,
            zeroer: Zeroer::new(target.file)?,
            is_file: target.file.metadata().context("examine the target")?.is_file(),
        })
    }

    /// Lets the filesystem allocate at once what a long extent is written to. A write with O_DIRECT that has to allocate
    /// holds up the other threads' writes to the file; one to allocated space does not.
    fn reserve(&self, extent: &Extent) {
        if !self.is_file || !extent.data || extent.length < RESERVED_BYTES_MIN {
            return;
        }
        let (Ok(offset), Ok(length)) = (i64::try_from(extent.offset), i64::try_from(extent.length)) else {
            return;
        };
        let kept = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // Not every filesystem can; what is lacking then, space above all, is found by the write.
        if let Err(error) = fallocate(self.target.file, kept, offset, length) {
            tracing::debug!("cannot allocate {} bytes ahead: {error}", extent.length);
        }
    }

    fn piece(&self, piece: &Piece, buffer: &mut AlignedBuf) -> anyhow::Result<()> {
        let Range { start, end } = piece.range;
        if piece.data {
            buffer.set_len(usize::try_from(end - start).unwrap_or(usize::MAX));
            self.disk.read_at(start, buffer)?;
            return self.write(buffer, start);
        }
        if self.target.is_zero {
            return Ok(());
        }
        self.target.begun.store(true, Ordering::Relaxed);
        self.zeroer.zero(start, end - start)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> anyhow::Result<()> {
        self.target.begun.store(true, Ordering::Relaxed);
        let written = self.target.file.write_all_at(bytes, offset);
        written.with_context(|| format!("write to the target at byte {offset}"))
    }

    /// Writes what lies behind the last whole block, through the page cache: O_DIRECT cannot.
    fn tail(&self, range: Range<u64>) -> anyhow::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
        self.disk.read_at(range.start, &mut bytes)?;
        blockio::set_buffered(self.target.file);
        self.write(&bytes, range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_an_extent_up_to_the_end() {
        let extent = Extent {
            offset: 65536,
            length: 5 << 20,
            data: true,
        };
        let end = (4 << 20) + 512;
        let pieces: Vec<Piece> = pieces_of(Ok(extent), end).map(Result::unwrap).collect();
        assert_eq!(pieces.first().unwrap().range, 65536..1 << 20);
        assert_eq!(pieces.last().unwrap().range, 4 << 20..end);
        let behind = Extent {
            offset: 8 << 20,
            length: 1 << 20,
            data: false,
        };
        assert_eq!(pieces_of(Ok(behind), end).count(), 0);
        let failed = pieces_of(Err(anyhow::anyhow!("no map")), end).next().unwrap();
        assert_eq!(failed.unwrap_err().to_string(), "no map");
    }
}
