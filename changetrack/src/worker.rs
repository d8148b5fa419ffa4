//! What a worker does with a chunk: digest, compare with the base, encode what differs.

use crate::error::{Error, Result};
use blockio::{Chunk, Delivery};
use crossbeam_channel::{Receiver, Sender, select};
use imagefmt::{Base, ClusterEncoder, ClusterUpdate, Codec, Digest, Geometry};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One pass of a run, as the workers see it.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Its number within the run.
    pub pass: usize,
    pub geometry: Geometry,
    /// What the disk is compared with; zeros where absent.
    pub base: Option<Base>,
    /// Whether chunks that could not be read are left for a later pass, and not stored as unreadable.
    pub defers: bool,
    pub results: Sender<(usize, Outcome)>,
    /// The run has ended: what still comes is of no use.
    pub is_over: Arc<AtomicBool>,
}

/// What a worker answers.
#[derive(Debug)]
pub(crate) enum Outcome {
    Examined(Examined),
    /// The reader has delivered all that it will.
    End,
    Failed(Error),
    /// As `Failed`, and the reader has ended its job with that.
    EndFailed(Error),
}

/// A chunk and what is to be stored of it.
///
/// The chunk stays until it has been stored, changed or not: so the number of buffers bounds how far the
/// workers run ahead of the writing.
#[derive(Debug)]
pub(crate) struct Examined {
    chunk: Chunk,
    changed: Vec<Changed>,
    /// Encoded clusters, one behind the other.
    encoded: Vec<u8>,
    /// Whether it is left for a later pass, because it could not be read.
    is_deferred: bool,
}

#[derive(Debug)]
struct Changed {
    index: u64,
    digest: Digest,
    codec: Codec,
    /// Where the stored bytes are: in the chunk when raw, in `encoded` otherwise.
    stored: Range<usize>,
}

impl Examined {
    /// How many chunks of the plan lie before it.
    pub fn index(&self) -> u64 {
        self.chunk.index()
    }

    /// Length of the chunk in bytes.
    pub fn len(&self) -> u64 {
        self.chunk.len() as u64
    }

    /// Bytes of it that were compared: none if it is left for a later pass.
    pub fn compared(&self) -> u64 {
        if self.is_deferred { 0 } else { self.len() }
    }

    /// Byte ranges of the disk that could not be read, ascending.
    pub fn unread(&self) -> &[Range<u64>] {
        self.chunk.unreadable()
    }

    /// What is to be stored, in ascending order.
    pub fn updates(&self) -> impl Iterator<Item = ClusterUpdate<'_>> {
        self.changed.iter().map(|changed| {
            let source = match changed.codec {
                Codec::Raw => &self.chunk[..],
                _ => &self.encoded[..],
            };
            ClusterUpdate {
                index: changed.index,
                digest: changed.digest,
                codec: changed.codec,
                stored: &source[changed.stored.clone()],
            }
        })
    }
}

/// The thread of a worker: examines what the readers deliver until `quit` closes.
pub(crate) fn work(
    mut encoder: ClusterEncoder,
    deliveries: &Receiver<(Arc<Stream>, Delivery)>,
    quit: &Receiver<()>,
) {
    lower_priority();
    loop {
        let (stream, delivery) = select! {
            recv(deliveries) -> delivery => match delivery {
                Ok(delivery) => delivery,
                Err(_) => return,
            },
            recv(quit) -> _ => return,
        };
        let outcome = match delivery {
            Delivery::Chunk(_) if stream.is_over.load(Ordering::Relaxed) => continue,
            Delivery::Chunk(chunk) => examine_safely(&mut encoder, &stream, chunk),
            Delivery::End(Ok(())) => Outcome::End,
            Delivery::End(Err(error)) => Outcome::EndFailed(error.into()),
        };
        // Nobody listens once the run is over.
        let _ = stream.results.send((stream.pass, outcome));
    }
}

/// A worker that panics would take its chunk along, and the others would wait for ever.
fn examine_safely(encoder: &mut ClusterEncoder, stream: &Stream, chunk: Chunk) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| examine(encoder, stream, chunk))) {
        Ok(Ok(examined)) => Outcome::Examined(examined),
        Ok(Err(error)) => Outcome::Failed(error),
        Err(_) => Outcome::Failed(Error::panicked()),
    }
}

/// Lets everything else go first: the threads that keep the reads in flight, the kernel's own, and whatever
/// the server is there for. With as many workers as cores, a scan is a tenth faster for it.
fn lower_priority() {
    const NICE: libc::c_int = 10;
    // SAFETY: takes no pointers; 0 is the calling thread (setpriority(2), "C library/kernel differences").
    // Being nicer is never refused, and if it were, the scan would only be slower.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// Digests every cluster of a chunk and prepares those that differ, or that cannot be read in the base, for storing.
fn examine(encoder: &mut ClusterEncoder, stream: &Stream, chunk: Chunk) -> Result<Examined> {
    // A reader that defers has read all of a chunk, or nothing.
    if stream.defers && !chunk.unreadable().is_empty() {
        return Ok(Examined {
            chunk,
            changed: Vec::new(),
            encoded: Vec::new(),
            is_deferred: true,
        });
    }
    let cluster_len = stream.geometry.cluster_size().byte_len();
    let first = stream.geometry.cluster_at(chunk.offset());
    let (mut changed, mut encoded) = (Vec::new(), Vec::new());
    let mut note = |update: &ClusterUpdate<'_>| {
        let start = match update.codec {
            Codec::Raw => usize::try_from(update.index - first).unwrap_or(usize::MAX) * cluster_len,
            _ => {
                encoded.extend_from_slice(update.stored);
                encoded.len() - update.stored.len()
            }
        };
        changed.push(Changed {
            index: update.index,
            digest: update.digest,
            codec: update.codec,
            stored: start..start + update.stored.len(),
        });
        Ok(())
    };
    let found = Found {
        offset: chunk.offset(),
        plain: &chunk,
        unreadable: chunk.unreadable(),
    };
    differing(encoder, stream.geometry, stream.base.as_ref(), &found, &mut note)?;
    Ok(Examined {
        chunk,
        changed,
        encoded,
        is_deferred: false,
    })
}

/// What was read of a disk, from a cluster's first byte on.
struct Found<'a> {
    /// Where it begins on the disk.
    offset: u64,
    plain: &'a [u8],
    /// Byte ranges of the disk that could not be read, ascending.
    unreadable: &'a [Range<u64>],
}

/// Takes a cluster that differs.
type Take<'a> = dyn FnMut(&ClusterUpdate<'_>) -> imagefmt::Result<()> + 'a;

/// Gives `take` the clusters that differ from the base, or that cannot be read in it.
fn differing(
    encoder: &mut ClusterEncoder,
    geometry: Geometry,
    base: Option<&Base>,
    found: &Found<'_>,
    take: &mut Take<'_>,
) -> imagefmt::Result<()> {
    let cluster_len = geometry.cluster_size().byte_len();
    let first = geometry.cluster_at(found.offset);
    let clusters = first..first + found.plain.len().div_ceil(cluster_len) as u64;
    let base = base.map(|base| base.digests(clusters)).transpose()?;
    for (i, plain) in found.plain.chunks(cluster_len).enumerate() {
        let index = first + i as u64;
        let start = geometry.cluster_offset(index);
        let update = match unreadable_sectors(found.unreadable, start..start + plain.len() as u64) {
            Some(sectors) => encoder.encode_damaged(index, plain, &sectors),
            None => {
                let digest = encoder.digest(plain);
                let before = base.as_ref().map_or(Some(Digest::NULL), |base| base[i]);
                if before == Some(digest) {
                    continue;
                }
                encoder.encode(index, digest, plain)
            }
        };
        take(&update)?;
    }
    Ok(())
}

/// Compares what was read of a disk before, whole clusters from byte `offset` on, with a base (zeros where absent), as a pass does
/// it. `take` gets the clusters that differ, or that cannot be read in the base, in ascending order.
///
/// # Errors
/// When the base cannot be read; those of `take`.
pub fn compare_read(
    encoder: &mut ClusterEncoder,
    geometry: Geometry,
    base: Option<&Base>,
    offset: u64,
    plain: &[u8],
    take: &mut dyn FnMut(&ClusterUpdate<'_>) -> imagefmt::Result<()>,
) -> imagefmt::Result<()> {
    let found = Found {
        offset,
        plain,
        unreadable: &[],
    };
    differing(encoder, geometry, base, &found, take)
}

/// Bytes for which a cluster that could not be read has a bit.
const SECTOR_BYTES: u64 = 512;

/// The sectors of a cluster that touch what is unreadable: a bit each, the lowest of the first byte first. `None` where
/// the cluster could be read.
fn unreadable_sectors(unreadable: &[Range<u64>], cluster: Range<u64>) -> Option<Vec<u8>> {
    let touches = |range: &&Range<u64>| range.start < cluster.end && cluster.start < range.end;
    let sectors = (cluster.end - cluster.start).div_ceil(SECTOR_BYTES);
    let mut bitmap: Option<Vec<u8>> = None;
    for range in unreadable.iter().filter(touches) {
        let bitmap = bitmap.get_or_insert_with(|| vec![0; usize::try_from(sectors.div_ceil(8)).unwrap_or(0)]);
        let first = range.start.saturating_sub(cluster.start) / SECTOR_BYTES;
        let end = (range.end.min(cluster.end) - cluster.start).div_ceil(SECTOR_BYTES);
        for sector in first..end {
            if let Some(byte) = usize::try_from(sector / 8).ok().and_then(|at| bitmap.get_mut(at)) {
                *byte |= 1 << (sector % 8);
            }
        }
    }
    bitmap
}

#[cfg(test)]
mod tests {
    use super::unreadable_sectors;
    use std::iter;
    use std::ops::Range;

    #[test]
    fn each_sector_that_touches_an_unreadable_range_has_its_bit() {
        let cluster = 16384..32768;
        let of = |ranges: Vec<Range<u64>>| unreadable_sectors(&ranges, cluster.clone());
        let one = |range: Range<u64>| iter::once(range).collect::<Vec<_>>();
        assert_eq!(of(Vec::new()), None);
        assert_eq!(of(vec![0..16384, 32768..40000]), None, "its neighbours");
        let mut bits = vec![0; 4];
        bits[0] = 0b11;
        assert_eq!(
            of(one(0..16384 + 513)),
            Some(bits.clone()),
            "a part of a sector too"
        );
        bits[3] = 0b1000_0000;
        assert_eq!(of(vec![16384..16384 + 1024, 32767..40000]), Some(bits));
        assert_eq!(of(one(0..65536)), Some(vec![0xFF; 4]));
        let short = 16384..16384 + 700;
        assert_eq!(
            unreadable_sectors(&one(short.clone()), short),
            Some(vec![0b11]),
            "a short last cluster"
        );
    }
}
