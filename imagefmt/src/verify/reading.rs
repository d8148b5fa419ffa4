//! Reading and checking what a walk has found: stored pieces that lie behind one another, with one read.

use super::finding::{Problem, note};
use crate::error::{Error, Result};
use crate::format::codec::check_cluster;
use crate::format::int::to_usize;
use crate::format::pointer::{Place, Pointer};
use crate::read::tree::Tree;
use crate::storage::BLOCK_LEN;
use blockio::AlignedBuf;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Mutex, PoisonError};

/// Most bytes read at once, if a single piece does not have more.
pub(super) const RUN_BYTES_MAX: u64 = 1 << 20;

/// Bytes between two pieces that are read along with them, as that costs less than another read.
const SKIPPED_BYTES_MAX: u64 = 4096;

/// Something stored that is to be checked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Piece {
    /// A cluster, with its index.
    Cluster(u64, Pointer),
    /// Bytes that nothing points to: they are zero.
    Gap(Place),
}

impl Piece {
    fn place(&self) -> Place {
        match self {
            Self::Cluster(_, pointer) => pointer.place,
            Self::Gap(place) => *place,
        }
    }

    fn clusters(&self) -> Range<u64> {
        match self {
            Self::Cluster(index, _) => *index..*index + 1,
            Self::Gap(_) => 0..0,
        }
    }

    /// Checks what was read in the piece's place.
    fn check(&self, tree: &Tree, stored: &[u8]) -> Result<()> {
        match self {
            Self::Cluster(index, pointer) => {
                let plain_len = tree.geometry().cluster_len(*index);
                check_cluster(pointer.codec, stored, plain_len, pointer.digest)
                    .map_err(|error| tree.name_place(error, *index, pointer))
            }
            Self::Gap(gap) => check_zero(gap, stored),
        }
    }

    /// Reads the piece by itself and checks it.
    fn read(&self, tree: &Tree) -> Result<()> {
        let place = self.place();
        let mut stored = vec![0; place.len as usize];
        let read = tree.read_stored(place.layer, place.offset, &mut stored);
        match self {
            Self::Cluster(index, _) => read.map_err(|error| tree.name_cluster(error, *index))?,
            Self::Gap(_) => read?,
        }
        self.check(tree, &stored)
    }
}

fn check_zero(gap: &Place, stored: &[u8]) -> Result<()> {
    let Some(at) = stored.iter().position(|&byte| byte != 0) else {
        return Ok(());
    };
    let (layer, byte) = (gap.layer, gap.offset + at as u64);
    Err(Error::damaged(format!(
        "layer {layer:08x}, byte {byte}: padding is not zero"
    )))
}

/// Pieces that are read at once.
#[derive(Debug)]
pub(super) struct Run {
    layer: u32,
    bytes: Range<u64>,
    pieces: Vec<Piece>,
}

impl Run {
    fn new(piece: Piece) -> Self {
        let place = piece.place();
        Self {
            layer: place.layer,
            bytes: place.offset..place.end(),
            pieces: vec![piece],
        }
    }

    /// Takes in a piece that does not begin before the run, if it is near and the run does not become too long.
    fn takes(&mut self, piece: Piece) -> bool {
        let place = piece.place();
        let end = self.bytes.end.max(place.end());
        let near = place.offset <= self.bytes.end.saturating_add(SKIPPED_BYTES_MAX);
        let takes = place.layer == self.layer && near && end - self.bytes.start <= RUN_BYTES_MAX;
        if takes {
            self.bytes.end = end;
            self.pieces.push(piece);
        }
        takes
    }

    /// The blocks that it lies in: what is read of the layer.
    fn blocks(&self) -> Range<u64> {
        let end = self.bytes.end.checked_next_multiple_of(BLOCK_LEN);
        self.bytes.start / BLOCK_LEN * BLOCK_LEN..end.unwrap_or(self.bytes.end)
    }

    /// Stored bytes of the clusters in it.
    pub fn cluster_bytes(&self) -> u64 {
        let of = |piece: &Piece| match piece {
            Piece::Cluster(_, pointer) => u64::from(pointer.place.len),
            Piece::Gap(_) => 0,
        };
        self.pieces.iter().map(of).sum()
    }

    /// Reads it and checks all of its pieces. The buffer grows if it has to.
    pub fn check(&self, tree: &Tree, buffer: &mut AlignedBuf) -> Vec<Problem> {
        let blocks = self.blocks();
        let len = to_usize(blocks.end - blocks.start);
        if buffer.capacity() < len {
            *buffer = AlignedBuf::new(len);
        }
        buffer.set_len(len);
        let read = tree.read_stored_once(self.layer, blocks.start, buffer);
        let mut problems = Vec::new();
        for piece in &self.pieces {
            let place = piece.place();
            let at = to_usize(place.offset - blocks.start);
            let checked = match read {
                Ok(()) => piece.check(tree, &buffer[at..at + place.len as usize]),
                // What cannot be read may be a neighbour, or lie between: each piece speaks for itself.
                Err(_) => piece.read(tree),
            };
            if let Err(error) = checked {
                note(&mut problems, Problem::new(piece.clusters(), &error));
            }
        }
        problems
    }
}

/// Puts pieces into runs, in the order in which they are stored.
pub(super) fn runs(mut pieces: Vec<Piece>) -> Vec<Run> {
    pieces.sort_by_key(|piece| (piece.place().layer, piece.place().offset));
    let mut runs: Vec<Run> = Vec::new();
    for piece in pieces {
        if !runs.last_mut().is_some_and(|run| run.takes(piece)) {
            runs.push(Run::new(piece));
        }
    }
    runs
}

/// Reads a piece by itself and checks it.
pub(super) fn check_alone(tree: &Tree, piece: &Piece) -> Option<Problem> {
    let read = piece.read(tree);
    read.err().map(|error| Problem::new(piece.clusters(), &error))
}

/// Checks runs until there are no more.
pub(super) fn work(tree: &Tree, runs: &Mutex<Receiver<Run>>, problems: &Sender<Vec<Problem>>) {
    // It grows with the runs: most disks with little in them need no more than a few blocks.
    let mut buffer = AlignedBuf::new(0);
    loop {
        let run = runs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(run) = run else { return };
        let found = run.check(tree, &mut buffer);
        if !found.is_empty() && problems.send(found).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::digest::Digest;
    use crate::format::pointer::Codec;

    fn cluster(layer: u32, offset: u64, len: u32) -> Piece {
        let place = Place { layer, offset, len };
        let digest = Digest([1; 32]);
        let codec = Codec::Raw;
        Piece::Cluster(0, Pointer { digest, codec, place })
    }

    fn shapes(pieces: Vec<Piece>) -> Vec<(u32, Range<u64>, usize)> {
        let runs = runs(pieces).into_iter();
        runs.map(|run| (run.layer, run.bytes, run.pieces.len())).collect()
    }

    #[test]
    fn neighbours_are_read_at_once() {
        let pieces = vec![
            cluster(2, 8192, 100),
            cluster(1, 8192, 100),
            cluster(1, 4096, 100),
            cluster(1, 8292 + 4097, 10),
        ];
        let expected = [(1, 4096..8292, 2), (1, 12389..12399, 1), (2, 8192..8292, 1)];
        assert_eq!(shapes(pieces), expected);
    }

    #[test]
    fn a_run_has_an_end() {
        let pieces = (0..40).map(|n| cluster(1, 4096 + n * 65536, 65536)).collect();
        let lens: Vec<u64> = shapes(pieces)
            .iter()
            .map(|(_, bytes, _)| bytes.end - bytes.start)
            .collect();
        assert_eq!(lens, [1 << 20, 1 << 20, 1 << 19]);
    }

    #[test]
    fn pieces_that_overlap_are_within_their_run() {
        let pieces = vec![
            cluster(1, 4096, 65536),
            cluster(1, 4096, 100),
            cluster(1, 5000, 200),
        ];
        assert_eq!(shapes(pieces), [(1, 4096..69632, 3)]);
    }
}
