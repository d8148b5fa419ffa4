//! How a disk of some size is cut into clusters and how high its tree stands.

use crate::error::{Error, Result};
use crate::format::int::to_usize;
use std::fmt;
use std::ops::Range;

/// Children of a node, at every level.
pub const FANOUT: usize = 256;
const FANOUT_U64: u64 = 256;
const FANOUT_BITS: u32 = 8;

/// The largest disk: NBD and the kernel count offsets in an `i64`.
pub const SIZE_MAX_BYTES: u64 = i64::MAX as u64;

/// The unit of comparison and storage, fixed for a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterSize {
    /// 16 KiB.
    K16,
    /// 64 KiB, the default.
    K64,
    /// 256 KiB.
    K256,
}

impl ClusterSize {
    /// From a number of bytes; only 16, 64 and 256 KiB exist.
    ///
    /// # Errors
    /// `Invalid` for any other number.
    pub fn from_bytes(bytes: u64) -> Result<Self> {
        match bytes {
            0x4000 => Ok(Self::K16),
            0x1_0000 => Ok(Self::K64),
            0x4_0000 => Ok(Self::K256),
            _ => Err(Error::invalid(format!(
                "cluster size {bytes} is none of 16384, 65536 and 262144"
            ))),
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::K16 => 0x4000,
            Self::K64 => 0x1_0000,
            Self::K256 => 0x4_0000,
        }
    }

    /// The size in bytes, to index memory with.
    pub const fn byte_len(self) -> usize {
        self.bytes() as usize
    }
}

impl fmt::Display for ClusterSize {
    /// In the short form of a digest's prefix: `64k`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}k", self.bytes() / 1024)
    }
}

/// Size and cluster size of a disk, from which the shape of its tree follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    size_bytes: u64,
    cluster_size: ClusterSize,
}

impl Geometry {
    /// A geometry for a disk of 1 byte to 2^63-1 bytes.
    ///
    /// # Errors
    /// `Invalid` for any other size.
    pub fn new(size_bytes: u64, cluster_size: ClusterSize) -> Result<Self> {
        if size_bytes == 0 || size_bytes > SIZE_MAX_BYTES {
            return Err(Error::invalid(format!(
                "disk size {size_bytes} is not within 1 to 2^63-1 bytes"
            )));
        }
        Ok(Self {
            size_bytes,
            cluster_size,
        })
    }

    /// Size of the disk in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Size of a cluster.
    pub fn cluster_size(&self) -> ClusterSize {
        self.cluster_size
    }

    /// Number of clusters, the short last one included.
    pub fn cluster_count(&self) -> u64 {
        self.size_bytes.div_ceil(u64::from(self.cluster_size.bytes()))
    }

    /// Byte offset at which cluster `index` starts.
    pub fn cluster_offset(&self, index: u64) -> u64 {
        index * u64::from(self.cluster_size.bytes())
    }

    /// The cluster that holds byte `offset`.
    pub fn cluster_at(&self, offset: u64) -> u64 {
        offset / u64::from(self.cluster_size.bytes())
    }

    /// True length of cluster `index` in bytes; 0 past the end of the disk.
    pub fn cluster_len(&self, index: u64) -> usize {
        let size = u64::from(self.cluster_size.bytes());
        let Some(start) = index.checked_mul(size).filter(|&start| start < self.size_bytes) else {
            return 0;
        };
        to_usize((self.size_bytes - start).min(size))
    }

    /// Number of node levels: the smallest `h >= 1` with `256^h >= clusters`.
    pub fn height(&self) -> u8 {
        let clusters = self.cluster_count();
        let mut height = 1u8;
        while height < 8 && (clusters - 1) >> (FANOUT_BITS * u32::from(height)) != 0 {
            height += 1;
        }
        height
    }

    /// Number of leaves.
    pub fn leaf_count(&self) -> u64 {
        self.cluster_count().div_ceil(FANOUT_U64)
    }

    /// Clusters below one node of `level` (a leaf, level 0, has 256).
    pub fn clusters_below(level: u8) -> u64 {
        1u64.checked_shl(FANOUT_BITS * (u32::from(level) + 1))
            .unwrap_or(u64::MAX)
    }

    /// The clusters that node (`level`, `index`) covers on this disk.
    pub fn clusters_of(&self, level: u8, index: u64) -> Range<u64> {
        let span = Self::clusters_below(level);
        let start = index.saturating_mul(span).min(self.cluster_count());
        start..start.saturating_add(span).min(self.cluster_count())
    }

    /// How many children of node (`level`, `index`) lie on this disk.
    pub fn child_count(&self, level: u8, index: u64) -> usize {
        let clusters = self.clusters_of(level, index);
        let per_child = if level == 0 {
            1
        } else {
            Self::clusters_below(level - 1)
        };
        to_usize((clusters.end - clusters.start).div_ceil(per_child))
    }
}

/// The slot in its parent of node or cluster `index`.
pub(crate) fn slot(index: u64) -> usize {
    to_usize(index % FANOUT_U64)
}

/// The index, one level up, of the node that holds node or cluster `index`.
pub(crate) fn parent_index(index: u64) -> u64 {
    index / FANOUT_U64
}

/// The index of child `slot` of node `index`.
pub(crate) fn child_index(index: u64, slot: usize) -> u64 {
    index * FANOUT_U64 + slot as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(size: u64) -> Geometry {
        Geometry::new(size, ClusterSize::K64).unwrap()
    }

    #[test]
    fn height_follows_from_size() {
        assert_eq!(geometry(1).height(), 1);
        assert_eq!(geometry(16 << 20).height(), 1);
        assert_eq!(geometry((16 << 20) + 1).height(), 2);
        assert_eq!(geometry(4 << 30).height(), 2);
        assert_eq!(geometry(1 << 40).height(), 3);
        assert_eq!(geometry(16 << 40).height(), 4);
        assert_eq!(geometry(SIZE_MAX_BYTES).height(), 6);
    }

    #[test]
    fn last_cluster_is_short() {
        let geometry = geometry(0x1_0000 + 3);
        assert_eq!(geometry.cluster_count(), 2);
        assert_eq!(geometry.cluster_len(0), 0x1_0000);
        assert_eq!(geometry.cluster_len(1), 3);
        assert_eq!(geometry.cluster_len(2), 0);
        assert_eq!(geometry.cluster_len(u64::MAX), 0);
    }

    #[test]
    fn children_end_with_the_disk() {
        let geometry = geometry((16 << 20) + 1);
        assert_eq!(geometry.child_count(1, 0), 2);
        assert_eq!(geometry.child_count(0, 0), 256);
        assert_eq!(geometry.child_count(0, 1), 1);
        assert_eq!(geometry.child_count(0, 2), 0);
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert!(Geometry::new(0, ClusterSize::K64).is_err());
        assert!(Geometry::new(1 << 63, ClusterSize::K64).is_err());
        assert!(ClusterSize::from_bytes(4096).is_err());
    }
}
