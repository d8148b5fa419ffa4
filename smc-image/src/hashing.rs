//! Digests of whole disks, computed on all cores from whatever gives the content.

use anyhow::Context;
use blockio::{Device, ReadOptions, SequentialReader};
use cli::interrupt::Interrupt;
use cli::progress::Progress;
use imagefmt::{Digest, Disk, DiskDigest, DiskHasher, Geometry, cluster_digest};
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Bytes hashed at a time: a whole number of clusters of every size.
const CHUNK_BYTES: usize = 1 << 20;

/// Digest of what a device or file holds in the geometry's size; `interrupt`, where given, ends it early.
pub fn of_device(
    device: &Device,
    geometry: Geometry,
    progress: &Progress,
    interrupt: Option<&Interrupt>,
) -> anyhow::Result<DiskDigest> {
    let ranges = Some((0..geometry.size_bytes()).into());
    let reader = SequentialReader::new(
        device,
        &ReadOptions {
            chunk_bytes: CHUNK_BYTES,
            ranges,
            ..ReadOptions::default()
        },
    )?;
    let chunks = reader.receiver().clone();
    let digest = of_chunks(geometry, progress, || {
        if let Some(Err(interrupted)) = interrupt.map(Interrupt::check) {
            return Some(Err(interrupted.into()));
        }
        let chunk = chunks.recv().ok()?;
        Some(
            chunk
                .map(|chunk| (chunk.index(), chunk))
                .map_err(anyhow::Error::from),
        )
    })?;
    device.check_unchanged()?;
    Ok(digest)
}

/// Digest of a disk of an image, from its content and not from its root.
pub fn of_disk(disk: &Disk, geometry: Geometry, progress: &Progress) -> anyhow::Result<DiskDigest> {
    let next = AtomicU64::new(0);
    of_chunks(geometry, progress, || {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let mut chunk = vec![0; chunk_len(geometry, index)];
        if chunk.is_empty() {
            return None;
        }
        let read = disk.read_at(index * CHUNK_BYTES as u64, &mut chunk);
        Some(read.map(|()| (index, chunk)).map_err(anyhow::Error::from))
    })
}

/// Digest of what a stream brings, which must be as long as the geometry says.
pub fn of_stream(
    stream: impl Read + Send,
    geometry: Geometry,
    progress: &Progress,
) -> anyhow::Result<DiskDigest> {
    let source = Mutex::new((0, stream));
    of_chunks(geometry, progress, || {
        let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, stream) = &mut *source;
        let mut chunk = vec![0; chunk_len(geometry, *next)];
        if chunk.is_empty() {
            return None;
        }
        let index = *next;
        *next += 1;
        let at = index * CHUNK_BYTES as u64;
        let read = stream.read_exact(&mut chunk);
        Some(
            read.with_context(|| format!("read the content from byte {at} on"))
                .map(|()| (index, chunk)),
        )
    })
}

/// Length of a chunk; 0 past the end.
fn chunk_len(geometry: Geometry, index: u64) -> usize {
    let start = index.saturating_mul(CHUNK_BYTES as u64);
    let left = geometry.size_bytes().saturating_sub(start);
    usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES))
}

/// A chunk's number and its clusters' digests.
type Hashed = (u64, Vec<Digest>);

/// Hashes the chunks that `next` gives to several threads, each with its number, in any order.
fn of_chunks<C: Deref<Target = [u8]>>(
    geometry: Geometry,
    progress: &Progress,
    next: impl Fn() -> Option<anyhow::Result<(u64, C)>> + Sync,
) -> anyhow::Result<DiskDigest> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (sender, hashed) = sync_channel(4 * workers);
        for _ in 0..workers {
            let sender = sender.clone();
            let (next, stop) = (&next, &stop);
            scope.spawn(move || work(geometry, next, stop, &sender));
        }
        drop(sender);
        let combined = combine(geometry, progress, &hashed);
        stop.store(true, Ordering::Relaxed);
        combined
    })
}

fn work<C: Deref<Target = [u8]>>(
    geometry: Geometry,
    next: &(impl Fn() -> Option<anyhow::Result<(u64, C)>> + Sync),
    stop: &AtomicBool,
    sender: &SyncSender<anyhow::Result<Hashed>>,
) {
    while !stop.load(Ordering::Relaxed) {
        let Some(chunk) = next() else { return };
        let hashed = chunk.map(|(index, chunk)| {
            let clusters = chunk.chunks(geometry.cluster_size().byte_len());
            (index, clusters.map(cluster_digest).collect())
        });
        if sender.send(hashed).is_err() {
            return;
        }
    }
}

/// Puts the chunks' digests in order. Few wait here: as many as there are chunks in flight.
fn combine(
    geometry: Geometry,
    progress: &Progress,
    hashed: &Receiver<anyhow::Result<Hashed>>,
) -> anyhow::Result<DiskDigest> {
    let mut hasher = DiskHasher::new(geometry);
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    for hashed in hashed {
        let (index, digests) = hashed?;
        waiting.insert(index, digests);
        while let Some(digests) = waiting.remove(&next) {
            digests.into_iter().for_each(|digest| hasher.push(digest));
            progress.advance(chunk_len(geometry, next) as u64);
            next += 1;
        }
    }
    hasher.finish().context("the content ended before its size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use imagefmt::ClusterSize;

    fn bytes(len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (1..=251).cycle().take(len).collect();
        bytes[len / 3..len / 2].fill(0);
        bytes
    }

    fn expected(bytes: &[u8], geometry: Geometry) -> DiskDigest {
        let mut hasher = DiskHasher::new(geometry);
        bytes
            .chunks(geometry.cluster_size().byte_len())
            .for_each(|cluster| hasher.push(cluster_digest(cluster)));
        hasher.finish().unwrap()
    }

    #[test]
    fn device_and_stream_give_the_same_digest() {
        for size in [1, 70_001, 1 << 20, (5 << 20) + 513] {
            let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
            let content = bytes(size.max(2));
            std::fs::write(file.path(), &content).unwrap();
            for cluster_size in [ClusterSize::K16, ClusterSize::K64, ClusterSize::K256] {
                let geometry = Geometry::new(content.len() as u64, cluster_size).unwrap();
                let progress = Progress::bytes(geometry.size_bytes(), "test");
                let expected = expected(&content, geometry);
                assert_eq!(of_stream(&content[..], geometry, &progress).unwrap(), expected);
                let device = Device::open(file.path()).unwrap();
                assert_eq!(of_device(&device, geometry, &progress, None).unwrap(), expected);
            }
        }
    }

    #[test]
    fn stream_that_ends_early_has_no_digest() {
        let geometry = Geometry::new(3 << 20, ClusterSize::K64).unwrap();
        let content = vec![1; (3 << 20) - 1];
        let error = of_stream(&content[..], geometry, &Progress::bytes(0, "test")).unwrap_err();
        assert!(error.to_string().contains("2097152"), "{error}");
    }
}
