#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod bounds;
mod model;
mod parallel;
mod views;

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::cluster::CLUSTER_LEN;
use super::{Overlay, Space};
use crate::{Export, ExportError, Extent, FailureKind, HOLE, Ready, ZERO};

const CLUSTER: u64 = CLUSTER_LEN as u64;

/// An export in memory with a damaged range.
struct Flat {
    bytes: Vec<u8>,
    damaged: Range<u64>,
}

impl Flat {
    fn sound(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { bytes, damaged: 0..0 })
    }

    /// Bytes that differ from one another and are never zero.
    fn patterned(length: u64) -> Arc<Self> {
        Self::sound((0..length).map(pattern).collect())
    }

    fn byte(&self, at: u64) -> Option<u8> {
        (!self.damaged.contains(&at)).then(|| self.bytes[at as usize])
    }
}

fn pattern(at: u64) -> u8 {
    (at % 251) as u8 + 1
}

impl Export for Flat {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        let end = offset + buf.len() as u64;
        if offset < self.damaged.end && self.damaged.start < end {
            return Err(ExportError::io(
                self.damaged.start.max(offset),
                "cluster 7 is damaged",
            ));
        }
        buf.copy_from_slice(&self.bytes[offset as usize..end as usize]);
        Ok(())
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Ready {
        self.read_at(offset, buf).map_or(Ready::No, |()| Ready::Data)
    }

    /// Pieces that fit no sector, the last one past the end of the request, and a few at a time.
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        const PIECE: u64 = 1000;
        let mut at = offset;
        let mut extents = Vec::new();
        while at < offset + length && extents.len() < 20 {
            let end = (at / PIECE * PIECE + PIECE).min(self.size_bytes());
            let is_zero = (at..end).all(|at| self.byte(at) == Some(0));
            let length = end - at;
            extents.push(if is_zero {
                Extent::hole(length)
            } else {
                Extent::data(length)
            });
            at = end;
        }
        Ok(extents)
    }
}

/// Zeros of any size.
struct Nothing(u64);

impl Export for Nothing {
    fn size_bytes(&self) -> u64 {
        self.0
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        buf.fill(0);
        Ok(())
    }

    fn extents(&self, _: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent::hole(length)])
    }
}

/// A space of this many clusters.
fn space(in_memory: u64, limit: u64) -> Arc<Space> {
    Space::new(&std::env::temp_dir(), in_memory * CLUSTER, limit * CLUSTER).unwrap()
}

/// Bytes that the file takes up on its disk.
fn allocated(space: &Space) -> u64 {
    // What was written is only sure to be counted once it was laid out.
    space.file().sync_all().unwrap();
    space.file().metadata().unwrap().blocks() * 512
}

fn bytes_at(export: &dyn Export, offset: u64, length: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; length];
    export.read_at(offset, &mut buf).unwrap();
    buf
}

fn kind<T>(result: Result<T, ExportError>) -> Option<FailureKind> {
    result.err().map(|error| error.kind)
}

fn extent(length: u64, flags: u32) -> Extent {
    Extent { length, flags }
}

/// All extents of a range, however many answers that takes.
fn all_extents(overlay: &Overlay, range: Range<u64>) -> Vec<Extent> {
    let mut at = range.start;
    let mut all: Vec<Extent> = Vec::new();
    while at < range.end {
        for reported in overlay.allocation(at, range.end - at).unwrap() {
            at += reported.length;
            match all.last_mut() {
                Some(last) if last.flags == reported.flags => last.length += reported.length,
                _ => all.push(reported),
            }
        }
    }
    all
}

fn over(base: Arc<impl Export>, space: &Arc<Space>) -> Overlay {
    Overlay::new(base, space)
}

const DATA_BELOW: u32 = HOLE;
const NO_BYTES: u32 = HOLE | ZERO;
