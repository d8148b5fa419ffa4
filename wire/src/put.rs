//! Clusters on their way to the target.

use crate::error::{Error, Result};
use crate::message::Body;
use std::ops::Range;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Stored bytes at which a message is full enough to be sent.
pub const FULL_BYTES: usize = 512 << 10;

/// Clusters of one message at most.
pub const PIECES_MAX: usize = 1024;

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    disk: U32,
    pieces: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Entry {
    cluster: U64,
    stored_bytes: U32,
    codec: u8,
    zero: [u8; 3],
    digest: [u8; 32],
}

const HEAD_BYTES: usize = size_of::<Head>();
const ENTRY_BYTES: usize = size_of::<Entry>();
const _: () = assert!(HEAD_BYTES == 8 && ENTRY_BYTES == 48);

/// One cluster as it is stored. Digest and bytes are opaque here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Its number on the disk.
    pub cluster: u64,
    /// How `stored` stands for its content.
    pub codec: u8,
    /// Digest of its content.
    pub digest: [u8; 32],
    /// What is stored.
    pub stored: &'a [u8],
}

/// Clusters of one disk, ascending. Body: disk and number of pieces (u32 each), an entry of 48 bytes for each piece (cluster u64, length u32,
/// codec u8, three zeros, digest), then the stored bytes one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    disk: u32,
    body: Vec<u8>,
    pieces: Vec<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    cluster: u64,
    codec: u8,
    digest: [u8; 32],
    stored: Range<usize>,
}

impl Put {
    /// The disk, as [`Begin`](crate::message::Begin) numbers them.
    pub fn disk(&self) -> u32 {
        self.disk
    }

    /// The clusters, ascending.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.pieces.iter().map(|place| Piece {
            cluster: place.cluster,
            codec: place.codec,
            digest: place.digest,
            stored: &self.body[place.stored.clone()],
        })
    }
}

impl Body for Put {
    fn into_body(self) -> Vec<u8> {
        self.body
    }

    fn from_body(body: Vec<u8>) -> Result<Put> {
        let cut_off = || Error::malformed("a message of clusters has another length than it says");
        let (head, rest) = Head::read_from_prefix(&body).map_err(|_| cut_off())?;
        let count = head.pieces.get() as usize;
        if count == 0 || count > PIECES_MAX {
            return Err(Error::malformed(format!("a message has {count} clusters")));
        }
        let entries = rest.get(..count * ENTRY_BYTES).ok_or_else(cut_off)?;
        let (mut at, mut pieces) = (HEAD_BYTES + entries.len(), Vec::with_capacity(count));
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let entry = Entry::read_from_bytes(entry).map_err(|_| cut_off())?;
            let place = place(&entry, at, pieces.last())?;
            at = place.stored.end;
            pieces.push(place);
        }
        if at != body.len() {
            return Err(cut_off());
        }
        Ok(Put {
            disk: head.disk.get(),
            pieces,
            body,
        })
    }
}

fn place(entry: &Entry, at: usize, before: Option<&Place>) -> Result<Place> {
    let cluster = entry.cluster.get();
    if before.is_some_and(|before| before.cluster >= cluster) {
        return Err(Error::malformed("clusters of a message do not ascend"));
    }
    if entry.zero != [0; 3] {
        return Err(Error::malformed(
            "an entry of a message has something where zeros belong",
        ));
    }
    let end = at.checked_add(entry.stored_bytes.get() as usize);
    let end = end.ok_or_else(|| Error::malformed("a cluster is too long"))?;
    Ok(Place {
        cluster,
        codec: entry.codec,
        digest: entry.digest,
        stored: at..end,
    })
}

/// Collects clusters for one message.
#[derive(Debug, Default)]
pub struct PutBuilder {
    disk: u32,
    entries: Vec<u8>,
    stored: Vec<u8>,
    pieces: usize,
}

impl PutBuilder {
    /// Whether a cluster of this disk with so many stored bytes has to go into the next message.
    pub fn is_full_for(&self, disk: u32, stored_bytes: usize) -> bool {
        let other_disk = disk != self.disk;
        let too_long = self.stored.len() + stored_bytes > FULL_BYTES;
        self.pieces > 0 && (other_disk || too_long || self.pieces == PIECES_MAX)
    }

    /// Adds a cluster; those of a disk ascend. Not to be called while [`is_full_for`](Self::is_full_for) it.
    pub fn push(&mut self, disk: u32, piece: &Piece<'_>) {
        self.disk = disk;
        let entry = Entry {
            cluster: U64::new(piece.cluster),
            // A cluster has at most 256 KiB and a bitmap.
            stored_bytes: U32::new(u32::try_from(piece.stored.len()).unwrap_or(u32::MAX)),
            codec: piece.codec,
            zero: [0; 3],
            digest: piece.digest,
        };
        self.entries.extend_from_slice(entry.as_bytes());
        self.stored.extend_from_slice(piece.stored);
        self.pieces += 1;
    }

    /// The message of what was added since the last one; `None` if nothing was.
    ///
    /// # Errors
    /// As when it is read: for clusters that do not ascend.
    pub fn take(&mut self) -> Result<Option<Put>> {
        let full = std::mem::take(self);
        if full.pieces == 0 {
            return Ok(None);
        }
        let head = Head {
            disk: U32::new(full.disk),
            pieces: U32::new(u32::try_from(full.pieces).unwrap_or(u32::MAX)),
        };
        Put::from_body([head.as_bytes(), &full.entries, &full.stored].concat()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn piece(cluster: u64, stored: &[u8]) -> Piece<'_> {
        Piece {
            cluster,
            codec: 1,
            digest: [u8::try_from(cluster).unwrap(); 32],
            stored,
        }
    }

    #[test]
    fn clusters_come_out_as_they_went_in() {
        let mut builder = PutBuilder::default();
        assert_eq!(builder.take().unwrap(), None);
        builder.push(2, &piece(5, b"five"));
        builder.push(2, &piece(6, b""));
        builder.push(2, &piece(9, b"nine!"));
        assert!(builder.is_full_for(3, 0), "another disk");
        assert!(builder.is_full_for(2, FULL_BYTES));
        assert!(!builder.is_full_for(2, 100));
        let put = builder.take().unwrap().unwrap();
        assert_eq!(put.disk(), 2);
        let expected = [piece(5, b"five"), piece(6, b""), piece(9, b"nine!")];
        assert_eq!(put.pieces().collect::<Vec<_>>(), expected);
        let body = put.clone().into_body();
        assert_eq!(body.len(), 8 + 3 * 48 + 9);
        assert_eq!(Put::from_body(body).unwrap(), put);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut builder = PutBuilder::default();
        builder.push(0, &piece(5, b"five"));
        builder.push(0, &piece(6, b"six"));
        let body = builder.take().unwrap().unwrap().into_body();
        for length in 0..body.len() {
            assert!(
                Put::from_body(body[..length].to_vec()).is_err(),
                "cut off after {length}"
            );
        }
        let longer = [&body[..], &[0]].concat();
        assert!(Put::from_body(longer).is_err());
        let mut twice = body.clone();
        twice[8..16].copy_from_slice(&6u64.to_le_bytes());
        assert!(Put::from_body(twice).is_err(), "the same cluster twice");
        let mut reserved = body.clone();
        reserved[8 + 13] = 1;
        assert!(Put::from_body(reserved).is_err());
        let mut many = body;
        many[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Put::from_body(many).is_err());
    }
}
