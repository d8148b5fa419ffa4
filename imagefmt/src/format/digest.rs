//! Digests: of a cluster, of a node, of a disk. They are about content, never about place,
//! so anyone can recompute one from a raw device or over NBD (docs/format.md, "Digests").

use crate::format::geometry::{ClusterSize, FANOUT, Geometry};
use blake3::Hasher;
use blockio::is_zero;
use std::fmt;
use std::sync::LazyLock;

/// A BLAKE3 digest; 32 zero bytes stand for "all zero" (null).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// Length of a digest in bytes.
pub const DIGEST_LEN: usize = 32;

impl Digest {
    /// The digest of an all-zero cluster, and of a node of nothing but nulls.
    pub const NULL: Self = Self([0; DIGEST_LEN]);

    /// Digest of a cluster's plain bytes, at its true length; null if they are all zero.
    pub fn of_cluster(bytes: &[u8]) -> Self {
        if is_zero(bytes) {
            Self::NULL
        } else {
            hash(&CLUSTER, &[bytes])
        }
    }

    /// Whether this stands for all zeros.
    pub fn is_null(&self) -> bool {
        *self == Self::NULL
    }

    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; DIGEST_LEN];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Hashers with their keys derived once: deriving costs two compressions, a clone costs none.
macro_rules! context {
    ($name:ident, $context:literal) => {
        static $name: LazyLock<Hasher> = LazyLock::new(|| Hasher::new_derive_key($context));
    };
}
context!(CLUSTER, "smc 2026-11 cluster digest");
context!(DAMAGED, "smc 2026-11 damaged cluster digest");
context!(NODE, "smc 2026-11 node digest");
context!(DISK, "smc 2026-11 disk digest");
context!(PLACE, "smc 2026-11 node place");
context!(FRAME, "smc 2026-11 zstd frame");
context!(HEADER, "smc 2026-11 layer header");
context!(SEAL, "smc 2026-11 sealed text");

fn hash(context: &Hasher, parts: &[&[u8]]) -> Digest {
    let mut hasher = context.clone();
    for part in parts {
        hasher.update(part);
    }
    Digest(hasher.finalize().into())
}

/// Digest of a cluster that was partly unreadable: its bytes and its sector bitmap.
pub(crate) fn damaged_digest(bytes_and_bitmap: &[u8]) -> Digest {
    hash(&DAMAGED, &[bytes_and_bitmap])
}

/// Digest of a node from its children's; null if all of them are.
pub(crate) fn node_digest(children: &[u8; FANOUT * DIGEST_LEN]) -> Digest {
    if is_zero(children) {
        Digest::NULL
    } else {
        hash(&NODE, &[children])
    }
}

/// What binds a stored node block to its place.
pub(crate) fn place_check(
    stored: &[u8],
    layer_uuid: &[u8; 16],
    offset: u64,
    level: u8,
    index: u64,
) -> Digest {
    hash(
        &PLACE,
        &[
            stored,
            layer_uuid,
            &offset.to_le_bytes(),
            &[level],
            &index.to_le_bytes(),
        ],
    )
}

/// Length of the check behind a compressed cluster in bytes.
pub(crate) const FRAME_CHECK_LEN: usize = 8;

/// What closes a stored zstd frame: the first bytes of its BLAKE3.
pub(crate) fn frame_check(frame: &[u8]) -> [u8; FRAME_CHECK_LEN] {
    let [a, b, c, d, e, f, g, h, ..] = hash(&FRAME, &[frame]).0;
    [a, b, c, d, e, f, g, h]
}

/// Checksum of a layer's header, over all that stands before it.
pub(crate) fn header_check(bytes: &[u8]) -> Digest {
    hash(&HEADER, &[bytes])
}

/// Checksum of a manifest, store.json or chain.json, over all lines before the last.
pub(crate) fn seal_check(bytes: &[u8]) -> Digest {
    hash(&SEAL, &[bytes])
}

/// The digest of a whole disk, shown as `smc1-64k:<hex>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskDigest {
    /// The cluster size that it was computed with.
    pub cluster_size: ClusterSize,
    /// The digest.
    pub digest: Digest,
}

impl DiskDigest {
    /// From the disk's geometry and the digest of its root node.
    pub fn new(geometry: Geometry, root: Digest) -> Self {
        let cluster_size = geometry.cluster_size();
        let size = geometry.size_bytes().to_le_bytes();
        let digest = hash(&DISK, &[&size, &cluster_size.bytes().to_le_bytes(), &root.0]);
        Self { cluster_size, digest }
    }
}

/// Digest of a leaf from its clusters' digests, of which a short last leaf has fewer than 256; null if all of them are.
pub fn leaf_digest(clusters: &[Digest]) -> Digest {
    let mut children = [0; FANOUT * DIGEST_LEN];
    for (place, digest) in children.chunks_exact_mut(DIGEST_LEN).zip(clusters) {
        place.copy_from_slice(&digest.0);
    }
    node_digest(&children)
}

/// Digest of a disk's root node from those of all its leaves.
pub fn root_digest(geometry: Geometry, leaves: &[Digest]) -> Digest {
    let mut level = leaves.to_vec();
    for _ in 1..geometry.height() {
        level = level.chunks(FANOUT).map(leaf_digest).collect();
    }
    level.first().copied().unwrap_or(Digest::NULL)
}

impl fmt::Display for DiskDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "smc1-{}:{}", self.cluster_size, self.digest)
    }
}

/// Computes a disk's digest from its clusters' digests, in ascending order, in constant memory.
#[derive(Debug)]
pub struct DiskHasher {
    geometry: Geometry,
    next: u64,
    /// For each level the child digests of the node being filled.
    levels: Vec<Box<[u8; FANOUT * DIGEST_LEN]>>,
}

impl DiskHasher {
    /// A hasher for a disk of this geometry.
    pub fn new(geometry: Geometry) -> Self {
        let levels = (0..geometry.height())
            .map(|_| Box::new([0; FANOUT * DIGEST_LEN]))
            .collect();
        Self {
            geometry,
            next: 0,
            levels,
        }
    }

    /// Takes the digest of the next cluster.
    pub fn push(&mut self, digest: Digest) {
        let mut index = self.next;
        self.next += 1;
        let mut digest = digest;
        let last = self.next == self.geometry.cluster_count();
        for level in &mut self.levels {
            let slot = crate::format::geometry::slot(index);
            level[slot * DIGEST_LEN..][..DIGEST_LEN].copy_from_slice(&digest.0);
            if slot + 1 < FANOUT && !last {
                return;
            }
            digest = node_digest(level);
            level.fill(0);
            index = crate::format::geometry::parent_index(index);
            if last {
                continue;
            }
        }
        if last {
            // The root's digest waits where the first child's stood.
            self.levels[0][..DIGEST_LEN].copy_from_slice(&digest.0);
        }
    }

    /// The disk's digest, once every cluster has been pushed; `None` before that.
    pub fn finish(self) -> Option<DiskDigest> {
        if self.next != self.geometry.cluster_count() {
            return None;
        }
        let root = Digest(self.levels[0][..DIGEST_LEN].try_into().ok()?);
        Some(DiskDigest::new(self.geometry, root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_makes_a_cluster_other_than_zero() {
        for len in [1, 127, 128, 129, 65536, 65537 - 512] {
            let mut bytes = vec![0; len];
            assert!(Digest::of_cluster(&bytes).is_null());
            for at in [0, len / 2, len - 1] {
                bytes[at] = 1;
                assert!(
                    !Digest::of_cluster(&bytes).is_null(),
                    "near-zero cluster of {len} taken for zero"
                );
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn a_disk_has_one_digest_whether_it_comes_from_clusters_or_from_leaves() {
        for clusters in [1, 2, 255, 256, 257, 600, 65536, 65537, 70_000u64] {
            let geometry = Geometry::new(clusters * 16384 - 100, ClusterSize::K16).unwrap();
            let digest = |index: u64| match index % 3 {
                0 => Digest::NULL,
                _ => Digest::of_cluster(&index.to_le_bytes()),
            };
            let digests: Vec<Digest> = (0..clusters).map(digest).collect();
            let mut hasher = DiskHasher::new(geometry);
            digests.iter().for_each(|digest| hasher.push(*digest));
            let leaves: Vec<Digest> = digests.chunks(FANOUT).map(leaf_digest).collect();
            let of_leaves = DiskDigest::new(geometry, root_digest(geometry, &leaves));
            assert_eq!(hasher.finish(), Some(of_leaves), "{clusters} clusters");
        }
    }

    #[test]
    fn digests_are_what_the_document_says() {
        // docs/format.md gives these values so that others can check their own code.
        let abc = Digest::of_cluster(b"abc");
        assert_eq!(
            abc,
            Digest(blake3::derive_key("smc 2026-11 cluster digest", b"abc"))
        );
        let geometry = Geometry::new(3, ClusterSize::K64).unwrap();
        let mut hasher = DiskHasher::new(geometry);
        hasher.push(abc);
        let mut children = [0u8; 8192];
        children[..32].copy_from_slice(&abc.0);
        let root = blake3::derive_key("smc 2026-11 node digest", &children);
        let mut disk = Vec::from(3u64.to_le_bytes());
        disk.extend(65536u32.to_le_bytes());
        disk.extend(root);
        let expected = blake3::derive_key("smc 2026-11 disk digest", &disk);
        assert_eq!(hasher.finish().unwrap().digest, Digest(expected));
    }
}
