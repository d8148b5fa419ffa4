//! Digests of whole disks, computed on all cores from whatever gives the content.

use crate::pieces::cut;
use crate::pipeline::Pipeline;
use anyhow::Context;
use blockio::{Device, ReadOptions, SequentialReader};
use cli::interrupt::Interrupt;
use cli::progress::Progress;
use imagefmt::{Digest, Disk, DiskDigest, DiskHasher, Geometry};
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;

/// Bytes hashed at a time: a whole number of clusters of every size.
const CHUNK_BYTES: usize = 1 << 20;

/// Digest of what a device or file holds in the geometry's size; `interrupt`, where given, ends it early.
///
/// # Errors
/// What the device cannot read; a device that changed its size meanwhile; an interrupt.
pub fn of_device(
    device: &Device,
    geometry: Geometry,
    progress: &Progress,
    interrupt: Option<&Interrupt>,
) -> anyhow::Result<DiskDigest> {
    let options = ReadOptions {
        chunk_bytes: CHUNK_BYTES,
        ranges: Some((0..geometry.size_bytes()).into()),
        ..ReadOptions::default()
    };
    let chunks = SequentialReader::new(device, &options)?.map(|chunk| Ok(chunk?));
    let hash = || |chunk: blockio::Chunk| Ok((chunk.offset(), clusters_of(geometry, &chunk)));
    let mut hasher = Hasher::new(geometry, progress);
    // The device answers in any order.
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    Pipeline::on_all_cores(interrupt).run(chunks, hash, |(offset, digests)| {
        waiting.insert(offset, digests);
        while let Some(digests) = waiting.remove(&next) {
            hasher.push(digests);
            next += CHUNK_BYTES as u64;
        }
        Ok(())
    })?;
    device.check_unchanged()?;
    hasher.finish()
}

/// Digest of a disk of an image, from its content and not from its root.
///
/// # Errors
/// What the store cannot read, and clusters that are damaged.
pub fn of_disk(disk: &Disk, geometry: Geometry, progress: &Progress) -> anyhow::Result<DiskDigest> {
    let ranges = cut(0..geometry.size_bytes(), CHUNK_BYTES as u64).map(Ok);
    let worker = || {
        let mut buffer = Vec::new();
        move |range: Range<u64>| {
            buffer.resize(len_of(&range), 0);
            disk.read_at(range.start, &mut buffer)?;
            Ok(clusters_of(geometry, &buffer))
        }
    };
    let mut hasher = Hasher::new(geometry, progress);
    Pipeline::on_all_cores(None).run(ranges, worker, |digests| {
        hasher.push(digests);
        Ok(())
    })?;
    hasher.finish()
}

/// Digest of what a stream brings, which must be as long as the geometry says.
///
/// # Errors
/// A stream that cannot be read, or ends early.
pub fn of_stream(
    mut stream: impl Read + Send,
    geometry: Geometry,
    progress: &Progress,
) -> anyhow::Result<DiskDigest> {
    let chunks = cut(0..geometry.size_bytes(), CHUNK_BYTES as u64).map(move |range| {
        let mut chunk = vec![0; len_of(&range)];
        let read = stream.read_exact(&mut chunk);
        read.with_context(|| format!("read the content from byte {} on", range.start))?;
        Ok(chunk)
    });
    let hash = || |chunk: Vec<u8>| Ok(clusters_of(geometry, &chunk));
    let mut hasher = Hasher::new(geometry, progress);
    Pipeline::on_all_cores(None).run(chunks, hash, |digests| {
        hasher.push(digests);
        Ok(())
    })?;
    hasher.finish()
}

/// Length of a piece; one is never longer than a chunk.
fn len_of(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(CHUNK_BYTES)
}

/// The digests of the clusters in a chunk, and the chunk's length.
type Hashed = (Vec<Digest>, usize);

fn clusters_of(geometry: Geometry, chunk: &[u8]) -> Hashed {
    let clusters = chunk.chunks(geometry.cluster_size().byte_len());
    (clusters.map(Digest::of_cluster).collect(), chunk.len())
}

/// Takes the chunks' digests in order.
struct Hasher<'a> {
    hasher: DiskHasher,
    progress: &'a Progress,
}

impl<'a> Hasher<'a> {
    fn new(geometry: Geometry, progress: &'a Progress) -> Self {
        Self {
            hasher: DiskHasher::new(geometry),
            progress,
        }
    }

    fn push(&mut self, (digests, len): Hashed) {
        digests.into_iter().for_each(|digest| self.hasher.push(digest));
        self.progress.advance(len as u64);
    }

    fn finish(self) -> anyhow::Result<DiskDigest> {
        self.hasher.finish().context("the content ended before its size")
    }
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
            .for_each(|cluster| hasher.push(Digest::of_cluster(cluster)));
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
