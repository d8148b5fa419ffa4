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
    let cluster_len = stream.geometry.cluster_size().byte_len();
    let first = stream.geometry.cluster_at(chunk.offset());
    let clusters = first..first + chunk.len().div_ceil(cluster_len) as u64;
    let base = stream
        .base
        .as_ref()
        .map(|base| base.digests(clusters))
        .transpose()?;
    let (mut changed, mut encoded) = (Vec::new(), Vec::new());
    for (i, plain) in chunk.chunks(cluster_len).enumerate() {
        let digest = encoder.digest(plain);
        let before = base.as_ref().map_or(Some(Digest::NULL), |base| base[i]);
        if before == Some(digest) {
            continue;
        }
        let update = encoder.encode(first + i as u64, digest, plain);
        let start = match update.codec {
            Codec::Raw => i * cluster_len,
            _ => {
                encoded.extend_from_slice(update.stored);
                encoded.len() - update.stored.len()
            }
        };
        changed.push(Changed {
            index: update.index,
            digest,
            codec: update.codec,
            stored: start..start + update.stored.len(),
        });
    }
    Ok(Examined {
        chunk,
        changed,
        encoded,
    })
}
