//! What a worker does with a chunk: hash, compare with the parent, compress what differs.

use blockio::Chunk;
use imagefmt::{
    ClusterUpdate, Codec, Digest, Disk, FANOUT, Geometry, Result, cluster_digest, compress_cluster,
};
use std::ops::Range;

/// A chunk and what is to be stored of it.
///
/// The chunk stays until it has been stored, changed or not: so the number of buffers bounds how far the
/// workers run ahead of the writing.
#[derive(Debug)]
pub(crate) struct Examined {
    chunk: Chunk,
    changed: Vec<Changed>,
    /// Compressed clusters, one behind the other.
    packed: Vec<u8>,
}

#[derive(Debug)]
struct Changed {
    index: u64,
    digest: Digest,
    codec: Codec,
    /// Where the stored bytes are: in the chunk when raw, in `packed` when compressed.
    stored: Range<usize>,
}

impl Examined {
    /// Position of the chunk on the disk.
    pub fn chunk_index(&self) -> u64 {
        self.chunk.index()
    }

    /// Length of the chunk in bytes.
    pub fn len(&self) -> usize {
        self.chunk.len()
    }

    /// What is to be stored, in ascending order.
    pub fn updates(&self) -> impl Iterator<Item = ClusterUpdate<'_>> {
        self.changed.iter().map(|changed| {
            let stored = match changed.codec {
                Codec::Zstd => &self.packed[changed.stored.clone()],
                _ => &self.chunk[changed.stored.clone()],
            };
            ClusterUpdate {
                index: changed.index,
                digest: changed.digest,
                codec: changed.codec,
                stored,
            }
        })
    }
}

/// Examines chunks against one parent; each worker has its own.
#[derive(Debug)]
pub(crate) struct Examiner<'a> {
    geometry: Geometry,
    parent: Option<&'a Disk>,
    compress_level: i32,
    scratch: Vec<u8>,
}

impl<'a> Examiner<'a> {
    pub fn new(geometry: Geometry, parent: Option<&'a Disk>, compress_level: i32) -> Self {
        Self {
            geometry,
            parent,
            compress_level,
            scratch: Vec::new(),
        }
    }

    /// Hashes every cluster of a chunk and prepares those that differ for storing.
    pub fn examine(&mut self, chunk: Chunk) -> Result<Examined> {
        let cluster_len = self.geometry.cluster_size().byte_len();
        let first = self.geometry.cluster_at(chunk.offset());
        let mut examined = Examined {
            chunk,
            changed: Vec::new(),
            packed: Vec::new(),
        };
        let count = examined.chunk.len().div_ceil(cluster_len);
        // A chunk starts on a multiple of its length, which divides a leaf: it has one parent leaf.
        let leaf = self
            .parent
            .map(|parent| parent.tree().leaf(first / FANOUT as u64))
            .transpose()?;
        for i in 0..count {
            let index = first + i as u64;
            let range = i * cluster_len..((i + 1) * cluster_len).min(examined.chunk.len());
            let digest = cluster_digest(&examined.chunk[range.clone()]);
            let before = leaf
                .as_ref()
                .map_or(Digest::NULL, |leaf| leaf.child(index).digest);
            if digest != before {
                let changed = self.prepare(&mut examined, index, digest, range);
                examined.changed.push(changed);
            }
        }
        Ok(examined)
    }

    fn prepare(
        &mut self,
        examined: &mut Examined,
        index: u64,
        digest: Digest,
        range: Range<usize>,
    ) -> Changed {
        if digest.is_null() {
            return Changed {
                index,
                digest,
                codec: Codec::Null,
                stored: 0..0,
            };
        }
        let codec = compress_cluster(
            &examined.chunk[range.clone()],
            self.compress_level,
            &mut self.scratch,
        );
        let stored = if codec == Codec::Zstd {
            let start = examined.packed.len();
            examined.packed.extend_from_slice(&self.scratch);
            start..examined.packed.len()
        } else {
            range
        };
        Changed {
            index,
            digest,
            codec,
            stored,
        }
    }
}
