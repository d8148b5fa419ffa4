//! Reading a disk's bytes. What is handed out was verified since the image was opened, by the first of the readers that
//! have it open and share a [`Readers`](crate::Readers): clusters stored raw once, after which they are read in part and
//! without hashing; compressed ones whenever they are expanded.

use crate::error::{Error, ErrorKind, Result};
use crate::format::codec::{SECTOR_LEN, check_plain, decompress_cluster_into};
use crate::format::geometry::{FANOUT, parent_index, slot};
use crate::format::int::to_usize;
use crate::format::pointer::{Codec, Place, Pointer};
use crate::read::cache::CachedNode;
use crate::read::image::Disk;
use crate::read::tree::{Run, Tree};
use std::cell::RefCell;
use std::ops::ControlFlow;

/// What [`Disk::try_read_at`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryRead {
    /// It would have to wait, or to do more than copy, or it failed: [`Disk::read_at`] tells.
    /// The target may hold anything.
    Wait,
    /// The target is filled.
    Data,
    /// All that is asked for is zeros, nothing is stored for it. The target is left as it was.
    Zeros,
}

thread_local! {
    /// Stored bytes on their way to being checked: as many as the largest cluster that the thread has met.
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Disk {
    /// Fills `target` from byte `offset`. Nothing is handed out that was not verified: a damaged or
    /// unreadable cluster is an error that names it, never zeros. After an error `target` may hold anything.
    ///
    /// Whole compressed clusters are expanded into `target` and not kept; those that are read in part are.
    ///
    /// # Errors
    /// `Invalid` beyond the disk's end; `Damaged` and `Unreadable`, with the cluster; `Io` from the storage.
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        if !self.holds(offset, target.len()) {
            let (len, size) = (target.len(), self.size_bytes());
            return Err(Error::invalid(format!(
                "{}: {len} bytes at {offset} lie beyond its {size}",
                self.label()
            )));
        }
        self.fill(offset, target).map_err(|error| self.name_in(error))
    }

    /// The same; an error comes with the first byte that cannot be read. What is before it is in `target` then.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn read_until_bad(&self, offset: u64, target: &mut [u8]) -> std::result::Result<(), (u64, Error)> {
        if self.read_at(offset, target).is_ok() {
            return Ok(());
        }
        let cluster_bytes = u64::from(self.geometry().cluster_size().bytes());
        in_steps(offset, cluster_bytes, target, |at, cluster| {
            match self.read_at(at, cluster) {
                // Sectors that the source could read are kept beside those that it could not.
                Err(error) if error.kind() == ErrorKind::Unreadable => {
                    in_steps(at, SECTOR_LEN as u64, cluster, |at, sector| {
                        self.read_at(at, sector).map_err(|error| (at, error))
                    })
                }
                read => read.map_err(|error| (at, error)),
            }
        })
    }

    fn holds(&self, offset: u64, len: usize) -> bool {
        offset
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.size_bytes())
    }

    fn fill(&self, mut offset: u64, mut target: &mut [u8]) -> Result<()> {
        while !target.is_empty() {
            let index = self.geometry().cluster_at(offset);
            let leaf = self.tree().cached_leaf(parent_index(index))?;
            let done = Leaf::new(self.tree(), &leaf, index).fill(offset, target)?;
            target = &mut target[done..];
            offset += done as u64;
        }
        Ok(())
    }

    /// Fills `target` from byte `offset` if that takes nothing but looking up and copying: no waiting for a
    /// disk, no hashing, no decompression. All of it has to lie within one cluster.
    ///
    /// A cluster stored raw counts once it was verified and while its bytes are in the page cache, a
    /// compressed one while it is in the cluster cache: [`read_at`](Self::read_at) of a part of it, or
    /// [`cache`](Self::cache), gets it there.
    pub fn try_read_at(&self, offset: u64, target: &mut [u8]) -> TryRead {
        let geometry = self.geometry();
        let index = geometry.cluster_at(offset);
        let start = to_usize(offset - geometry.cluster_offset(index));
        let end = start.saturating_add(target.len());
        if target.is_empty() || end > geometry.cluster_len(index) {
            return TryRead::Wait;
        }
        let Some((pointer, verified)) = self.tree().known_cluster(index) else {
            return TryRead::Wait;
        };
        let filled = match pointer.codec {
            Codec::Null => return TryRead::Zeros,
            Codec::Raw => {
                let Place { layer, offset, .. } = pointer.place;
                verified && self.tree().read_stored_now(layer, offset + start as u64, target)
            }
            Codec::Zstd | Codec::Damaged => {
                let known = self.tree().known_content(index, &pointer);
                known.is_some_and(|content| match content.readable(start..end) {
                    Ok(plain) => {
                        target.copy_from_slice(plain);
                        true
                    }
                    Err(_) => false,
                })
            }
        };
        if filled { TryRead::Data } else { TryRead::Wait }
    }

    /// Prepares `length` bytes from `offset` on for being read, as far as the disk goes: expands compressed
    /// clusters into the cluster cache, verifies raw ones and gets them into the page cache.
    ///
    /// Stops after half of what the cluster cache has room for. An error says what a read would say.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn cache(&self, offset: u64, length: u64) -> Result<()> {
        let geometry = self.geometry();
        let end = offset.saturating_add(length).min(self.size_bytes());
        if offset >= end {
            return Ok(());
        }
        let mut room = self.tree().cluster_cache_bytes() / 2;
        let mut done = Ok(());
        let clusters = geometry.cluster_at(offset)..geometry.cluster_at(end - 1) + 1;
        let walked = self.tree().walk(clusters, &mut |run| {
            let Run::Data(index, pointer) = run else {
                return ControlFlow::Continue(());
            };
            let len = geometry.cluster_len(index);
            if len > room {
                return ControlFlow::Break(());
            }
            room -= len;
            done = self.prepare(index, &pointer);
            if done.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        walked.and(done).map_err(|error| self.name_in(error))
    }

    fn prepare(&self, index: u64, pointer: &Pointer) -> Result<()> {
        let leaf = self.tree().cached_leaf(parent_index(index))?;
        if pointer.codec != Codec::Raw {
            return self.tree().read_cluster_cached(index, pointer).map(drop);
        }
        if leaf.is_verified(slot(index)) {
            self.tree().will_read(&pointer.place);
            return Ok(());
        }
        Leaf::new(self.tree(), &leaf, index).verify_raw(index, &mut |_| {})
    }
}

/// Gives `target`, which begins at byte `offset`, to `work` in pieces that end at multiples of `unit`.
fn in_steps<E>(
    offset: u64,
    unit: u64,
    target: &mut [u8],
    mut work: impl FnMut(u64, &mut [u8]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut done = 0;
    while done < target.len() {
        let at = offset + done as u64;
        let len = to_usize(unit - at % unit).min(target.len() - done);
        work(at, &mut target[done..done + len])?;
        done += len;
    }
    Ok(())
}

/// A leaf that clusters are read by.
struct Leaf<'a> {
    tree: &'a Tree,
    node: &'a CachedNode,
    /// The first cluster that is wanted of it.
    first: u64,
}

/// Clusters stored raw behind one another, and how many of their bytes are wanted.
#[derive(Default)]
struct Span {
    clusters: usize,
    bytes: usize,
}

impl<'a> Leaf<'a> {
    fn new(tree: &'a Tree, node: &'a CachedNode, first: u64) -> Self {
        Self { tree, node, first }
    }

    fn pointer(&self, index: u64) -> &Pointer {
        &self.node.node().children()[slot(index)]
    }

    /// Clusters from `index` on that this leaf has.
    fn from(&self, index: u64) -> impl Iterator<Item = u64> {
        index..index + (FANOUT - slot(index)) as u64
    }

    /// Fills as much of `target` as the leaf's clusters hold, from the first on, and says how much.
    fn fill(&self, offset: u64, target: &mut [u8]) -> Result<usize> {
        let geometry = self.tree.geometry();
        let end = self.first + (FANOUT - slot(self.first)) as u64;
        let mut index = self.first;
        let mut done = 0;
        while index < end && done < target.len() {
            let start = to_usize(offset + done as u64 - geometry.cluster_offset(index));
            let rest = &mut target[done..];
            let span = self.raw_span(index, start, rest.len());
            if span.clusters > 0 {
                self.read_span(index, start, &span, &mut rest[..span.bytes])?;
                done += span.bytes;
                index += span.clusters as u64;
                continue;
            }
            let len = (geometry.cluster_len(index) - start).min(rest.len());
            self.read_one(index, start, &mut rest[..len])?;
            done += len;
            index += 1;
        }
        Ok(done)
    }

    /// The clusters from byte `start` of `index` on that one read can fetch to where they are wanted: stored
    /// raw, behind one another, and either verified or wanted whole.
    fn raw_span(&self, index: u64, start: usize, wanted: usize) -> Span {
        let mut span = Span::default();
        let mut start = start;
        let mut next: Option<Place> = None;
        for index in self.from(index) {
            let (pointer, left) = (self.pointer(index), wanted - span.bytes);
            let follows = next
                .is_none_or(|next| (pointer.place.layer, pointer.place.offset) == (next.layer, next.end()));
            if left == 0 || pointer.codec != Codec::Raw || !follows {
                break;
            }
            let len = self.tree.geometry().cluster_len(index);
            let taken = (len - start).min(left);
            if taken < len && !self.node.is_verified(slot(index)) {
                break;
            }
            span.clusters += 1;
            span.bytes += taken;
            next = Some(pointer.place);
            start = 0;
        }
        span
    }

    /// Reads a span by one read, and verifies in place what of it was not before.
    fn read_span(&self, first: u64, start: usize, span: &Span, target: &mut [u8]) -> Result<()> {
        let place = self.pointer(first).place;
        self.tree
            .read_stored(place.layer, place.offset + start as u64, target)
            .map_err(|error| self.tree.name_cluster(error, first))?;
        let mut rest = &*target;
        let mut start = start;
        for index in first..first + span.clusters as u64 {
            let len = self.tree.geometry().cluster_len(index) - start;
            let (cluster, behind) = rest.split_at(len.min(rest.len()));
            // What is there in part was verified when the span was made, and stays so.
            if !self.node.is_verified(slot(index)) {
                self.check_raw(index, cluster)?;
            }
            rest = behind;
            start = 0;
        }
        Ok(())
    }

    /// Compares the whole stored bytes of a raw cluster with its digest, and remembers that they match.
    fn check_raw(&self, index: u64, stored: &[u8]) -> Result<()> {
        let pointer = self.pointer(index);
        check_plain(stored, pointer.digest).map_err(|error| self.tree.name_place(error, index, pointer))?;
        self.node.set_verified(slot(index));
        Ok(())
    }

    /// Reads bytes of one cluster, from byte `start` of it on.
    fn read_one(&self, index: u64, start: usize, target: &mut [u8]) -> Result<()> {
        let pointer = self.pointer(index);
        let whole = target.len() == self.tree.geometry().cluster_len(index);
        match pointer.codec {
            Codec::Null => {
                target.fill(0);
                Ok(())
            }
            Codec::Raw => self.verify_raw(index, &mut |stored| {
                target.copy_from_slice(&stored[start..start + target.len()]);
            }),
            Codec::Zstd if whole => self.expand(index, target),
            Codec::Zstd | Codec::Damaged => {
                let content = self.tree.read_cluster_cached(index, pointer)?;
                let plain = content.readable(start..start + target.len());
                target.copy_from_slice(plain.map_err(|error| self.tree.name_cluster(error, index))?);
                Ok(())
            }
        }
    }

    /// Fills `target` with a whole compressed cluster.
    fn expand(&self, index: u64, target: &mut [u8]) -> Result<()> {
        let pointer = self.pointer(index);
        if let Some(content) = self.tree.known_content(index, pointer) {
            target.copy_from_slice(content.readable(0..target.len())?);
            return Ok(());
        }
        self.with_stored(index, |stored| {
            decompress_cluster_into(stored, pointer.digest, target)
                .map_err(|error| self.tree.name_place(error, index, pointer))
        })
    }

    /// Verifies a raw cluster and hands its bytes to `take`.
    fn verify_raw(&self, index: u64, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.with_stored(index, |stored| {
            self.check_raw(index, stored)?;
            take(stored);
            Ok(())
        })
    }

    /// Reads a cluster's stored bytes, which nobody has verified, for `work` to do so.
    fn with_stored(&self, index: u64, work: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        let Place { layer, offset, len } = self.pointer(index).place;
        STORED.with_borrow_mut(|stored| {
            let len = len as usize;
            if stored.len() < len {
                stored.resize(len, 0);
            }
            self.tree
                .read_stored(layer, offset, &mut stored[..len])
                .map_err(|error| self.tree.name_cluster(error, index))?;
            work(&stored[..len])
        })
    }
}
