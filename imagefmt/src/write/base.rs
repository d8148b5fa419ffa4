//! What a pass over a disk is compared with.

use crate::error::Result;
use crate::format::clusters::ClusterSet;
use crate::format::digest::Digest;
use crate::format::geometry::{child_index, parent_index, slot};
use crate::format::pointer::Holding;
use crate::read::image::Disk;
use std::iter::repeat_n;
use std::ops::Range;
use std::sync::Arc;

/// What a pass over a disk is compared with: a disk of an image, or of an unfinished sync, of which some clusters may
/// be damaged. Cheap to clone; safe to read from many threads.
#[derive(Debug, Clone)]
pub struct Base {
    disk: Disk,
    /// Clusters that are known to be damaged, or that were never taken over.
    due: Arc<ClusterSet>,
}

impl From<Disk> for Base {
    /// A disk of which no damage is known.
    fn from(disk: Disk) -> Self {
        Self::new(disk, ClusterSet::default())
    }
}

impl Base {
    /// A disk in which the clusters `due` are to be taken for changed, whatever their digests are.
    pub(crate) fn new(disk: Disk, due: ClusterSet) -> Self {
        let due = Arc::new(due);
        Self { disk, due }
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The digests of a range of clusters, those of zeros behind the end of the disk included.
    ///
    /// There is none for a cluster that has to be stored anew even if the source has not changed: it is known to be
    /// damaged, or a node that leads to it is, or some of its sectors were unreadable at the source.
    ///
    /// # Errors
    /// When the store cannot be read for another reason than damage.
    pub fn digests(&self, clusters: Range<u64>) -> Result<Vec<Option<Digest>>> {
        let mut digests = Vec::new();
        let mut next = clusters.start;
        while next < clusters.end {
            let end = child_index(parent_index(next) + 1, 0).min(clusters.end);
            let of_leaf = slot(next)..slot(end - 1) + 1;
            match self.disk.tree().leaf(parent_index(next)) {
                Ok(leaf) => {
                    let known = leaf.children()[of_leaf].iter().zip(next..);
                    digests.extend(known.map(|(child, index)| {
                        let is_whole = child.codec.holding() != Holding::Partial && !self.due.contains(index);
                        is_whole.then_some(child.digest)
                    }));
                }
                Err(error) if error.is_lost() => digests.extend(repeat_n(None, of_leaf.len())),
                Err(error) => return Err(self.disk.name_in(error)),
            }
            next = end;
        }
        Ok(digests)
    }
}
