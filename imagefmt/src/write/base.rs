//! What a pass over a disk is compared with.

use crate::error::{Error, Result};
use crate::format::clusters::ClusterSet;
use crate::format::digest::Digest;
use crate::format::geometry::{child_index, parent_index, slot};
use crate::format::pointer::Holding;
use crate::read::image::Disk;
use std::fmt;
use std::iter::repeat_n;
use std::ops::Range;
use std::sync::Arc;

/// Digests of what a disk is compared with, that are not read from a store of this machine.
pub trait Digests: fmt::Debug + Send + Sync {
    /// As [`Base::digests`].
    ///
    /// # Errors
    /// When they cannot be had.
    fn digests(&self, clusters: Range<u64>) -> Result<Vec<Option<Digest>>>;

    /// As [`Base::expect`].
    fn expect(&self, _clusters: &mut dyn Iterator<Item = Range<u64>>) {}
}

/// What a pass over a disk is compared with: a disk of an image, or of an unfinished sync, of which some clusters may
/// be damaged. Cheap to clone; safe to read from many threads.
#[derive(Debug, Clone)]
pub struct Base(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Stored {
        disk: Disk,
        /// Clusters that are known to be damaged, or that were never taken over.
        due: Arc<ClusterSet>,
    },
    Elsewhere(Arc<dyn Digests>),
}

impl From<Disk> for Base {
    /// A disk of which no damage is known.
    fn from(disk: Disk) -> Self {
        Self::new(disk, ClusterSet::default())
    }
}

impl From<Arc<dyn Digests>> for Base {
    fn from(digests: Arc<dyn Digests>) -> Self {
        Self(Kind::Elsewhere(digests))
    }
}

impl Base {
    /// A disk in which the clusters `due` are to be taken for changed, whatever their digests are.
    pub(crate) fn new(disk: Disk, due: ClusterSet) -> Self {
        let due = Arc::new(due);
        Self(Kind::Stored { disk, due })
    }

    /// The disk, if it is one of a store of this machine.
    pub fn disk(&self) -> Option<&Disk> {
        match &self.0 {
            Kind::Stored { disk, .. } => Some(disk),
            Kind::Elsewhere(_) => None,
        }
    }

    /// These clusters, ascending, will be asked for in about this order: a hint for what has to fetch their digests.
    pub fn expect(&self, clusters: &mut dyn Iterator<Item = Range<u64>>) {
        if let Kind::Elsewhere(digests) = &self.0 {
            digests.expect(clusters);
        }
    }

    /// The digests of a range of clusters, those of zeros behind the end of the disk included.
    ///
    /// There is none for a cluster that has to be stored anew even if the source has not changed: it is known to be
    /// damaged, or a node that leads to it is, or some of its sectors were unreadable at the source.
    ///
    /// # Errors
    /// When the store cannot be read for another reason than damage.
    pub fn digests(&self, clusters: Range<u64>) -> Result<Vec<Option<Digest>>> {
        match &self.0 {
            Kind::Stored { disk, due } => stored_digests(disk, due, clusters),
            Kind::Elsewhere(digests) => digests.digests(clusters),
        }
    }
}

fn stored_digests(disk: &Disk, due: &ClusterSet, clusters: Range<u64>) -> Result<Vec<Option<Digest>>> {
    let mut digests = Vec::new();
    let mut next = clusters.start;
    while next < clusters.end {
        let end = child_index(parent_index(next) + 1, 0).min(clusters.end);
        let of_leaf = slot(next)..slot(end - 1) + 1;
        match disk.tree().leaf(parent_index(next)) {
            Ok(leaf) => {
                let known = leaf.children()[of_leaf].iter().zip(next..);
                digests.extend(known.map(|(child, index)| {
                    let is_whole = child.codec.holding() != Holding::Partial && !due.contains(index);
                    is_whole.then_some(child.digest)
                }));
            }
            Err(error) if error.is_lost() => digests.extend(repeat_n(None, of_leaf.len())),
            Err(error) => return Err(disk.name_in(error)),
        }
        next = end;
    }
    Ok(digests)
}

/// A digest of what is stored, for a machine that compares with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredDigest {
    /// The digest; null also where the node that has it cannot be read.
    pub digest: Digest,
    /// What it is of has to be stored anew, whatever the source holds: as where [`Base::digests`] has none.
    pub is_lost: bool,
}

impl StoredDigest {
    const UNREAD: StoredDigest = StoredDigest {
        digest: Digest::NULL,
        is_lost: true,
    };
}

impl Base {
    /// The digests of a range of clusters that a store of this machine has, with those of clusters that are to be stored anew.
    ///
    /// # Errors
    /// `Invalid` where the disk is not one of a store of this machine; otherwise as for [`digests`](Self::digests).
    pub fn stored_clusters(&self, clusters: Range<u64>) -> Result<Vec<StoredDigest>> {
        let (disk, wanted) = (self.stored()?, self.digests(clusters.clone())?);
        let mut found = Vec::with_capacity(wanted.len());
        for (index, wanted) in clusters.zip(wanted) {
            found.push(match wanted {
                Some(digest) => StoredDigest {
                    digest,
                    is_lost: false,
                },
                None => match disk.tree().cluster(index) {
                    Ok(pointer) => StoredDigest {
                        digest: pointer.digest,
                        is_lost: true,
                    },
                    Err(error) if error.is_lost() => StoredDigest::UNREAD,
                    Err(error) => return Err(disk.name_in(error)),
                },
            });
        }
        Ok(found)
    }

    /// The digests of a range of leaves that a store of this machine has; a leaf is above 256 clusters. Lost are those that cannot
    /// be read in the nodes above.
    ///
    /// # Errors
    /// As for [`stored_clusters`](Self::stored_clusters).
    pub fn stored_leaves(&self, leaves: Range<u64>) -> Result<Vec<StoredDigest>> {
        let disk = self.stored()?;
        let digest = |leaf: u64| match disk.tree().leaf_digest(leaf) {
            Ok(digest) => Ok(StoredDigest {
                digest,
                is_lost: false,
            }),
            Err(error) if error.is_lost() => Ok(StoredDigest::UNREAD),
            Err(error) => Err(disk.name_in(error)),
        };
        leaves.map(digest).collect()
    }

    fn stored(&self) -> Result<&Disk> {
        let elsewhere = || Error::invalid("the digests of another machine's store are not read here");
        self.disk().ok_or_else(elsewhere)
    }
}
