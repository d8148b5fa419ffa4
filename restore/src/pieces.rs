//! In which pieces a disk is worked on.

use anyhow::bail;
use imagefmt::{Disk, Extent};
use std::ops::Range;
use std::{iter, mem, vec};

/// Extents looked up at a time.
const EXTENTS_MAX: usize = 4096;

/// All extents of a disk in ascending order, a bounded number in memory at a time.
pub fn extents(disk: &Disk) -> Extents<'_> {
    extents_in(disk, 0..disk.size_bytes())
}

/// Those in a range of bytes, which does not reach behind the disk's end.
pub fn extents_in(disk: &Disk, range: Range<u64>) -> Extents<'_> {
    Extents {
        disk,
        offset: range.start,
        end: range.end,
        known: Vec::new().into_iter(),
        failed: false,
    }
}

/// See [`extents`]. It ends after an error.
#[derive(Debug)]
pub struct Extents<'a> {
    disk: &'a Disk,
    /// Up to where extents are known.
    offset: u64,
    /// Where the last one ends.
    end: u64,
    known: vec::IntoIter<Extent>,
    failed: bool,
}

impl Extents<'_> {
    fn look_up(&mut self) -> anyhow::Result<()> {
        let found = self
            .disk
            .extents(self.offset, self.end - self.offset, EXTENTS_MAX)?;
        let Some(last) = found.last() else {
            bail!(
                "{}: its map ends at byte {} of {}",
                self.disk.label(),
                self.offset,
                self.end
            );
        };
        self.offset = last.offset + last.length;
        self.known = found.into_iter();
        Ok(())
    }
}

impl Iterator for Extents<'_> {
    type Item = anyhow::Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        let more = !self.failed && self.offset < self.end;
        if self.known.len() == 0
            && more
            && let Err(error) = self.look_up()
        {
            self.failed = true;
            return Some(Err(error));
        }
        self.known.next().map(Ok)
    }
}

/// Cuts a range at the multiples of `step`.
pub fn cut(range: Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    iter::from_fn(move || {
        let stop = ((start / step + 1) * step).min(range.end);
        let piece = mem::replace(&mut start, stop)..stop;
        (piece.start < piece.end).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range() {
        let end = (4 << 20) + 512;
        let pieces: Vec<Range<u64>> = cut(65536..end, 1 << 20).collect();
        assert_eq!(pieces.first(), Some(&(65536..1 << 20)));
        assert_eq!(pieces.last(), Some(&(4 << 20..end)));
        assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(cut(8..8, 4).count(), 0);
    }
}
