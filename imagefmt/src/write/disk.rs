//! One disk of an image being written: its builder, from the first pass to the commit.

use crate::error::{Error, Result};
use crate::format::clusters::ClusterSet;
use crate::format::digest::DiskDigest;
use crate::format::geometry::{Geometry, parent_index};
use crate::format::layer::LayerTable;
use crate::format::manifest::{DiskIdentity, DiskRecord, LayerRecord, Method, RootRecord};
use crate::format::name::ImageId;
use crate::format::node::NodeId;
use crate::format::pointer::Codec;
use crate::read::image::Disk;
use crate::read::tree::{Tree, Unread};
use crate::write::base::Base;
use crate::write::builder::{Builder, Built, ClusterUpdate};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What the daemon knows of a disk that goes into its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMeta {
    /// Name within the job.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes.
    pub logical_block_size: u32,
    /// What it can be known by.
    pub identity: DiskIdentity,
}

/// A disk of an [`ImageWriter`](crate::ImageWriter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskId {
    pub(crate) index: usize,
    geometry: Geometry,
}

impl DiskId {
    /// The disk of this number in an image that is not written by this crate.
    pub fn new(index: usize, geometry: Geometry) -> DiskId {
        DiskId { index, geometry }
    }

    /// Its number among the disks of its image, from 0 on, in the order in which they were added.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Size and cluster size of the disk.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }
}

/// What was read of a disk to check the tracker that says which of its clusters changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audited {
    /// Bytes that were read and compared for it.
    pub bytes: u64,
    /// Where the next sync continues.
    pub position: u64,
}

/// A disk, which may be read in several passes before the image is committed.
#[derive(Debug)]
pub(crate) struct DraftDisk {
    meta: DiskMeta,
    geometry: Geometry,
    /// The disk's record in the unfinished sync that is resumed.
    before: Option<DiskRecord>,
    /// What the current pass is compared with.
    base: Option<Base>,
    builder: Builder,
    /// How the changes were found, and why that way: as of the first pass, or of a later one over all of the disk.
    method: Option<(Method, String)>,
    /// Whether a pass began and has not ended.
    in_pass: bool,
    passes: u32,
    compared_bytes: u64,
    audited: Audited,
    /// Clusters of which sectors could not be read at the source, then or now; `None` where they are not known.
    unreadable: Option<ClusterSet>,
    /// Whether anything came since the last checkpoint.
    fresh: bool,
    /// Whether the builder has a tree of what came so far.
    settled: bool,
}

impl DraftDisk {
    pub fn new(
        meta: DiskMeta,
        geometry: Geometry,
        base: Option<Base>,
        before: Option<DiskRecord>,
        unreadable: Option<ClusterSet>,
        builder: Builder,
    ) -> Self {
        Self {
            meta,
            geometry,
            before,
            base,
            builder,
            method: None,
            in_pass: false,
            passes: 0,
            compared_bytes: 0,
            audited: Audited::default(),
            unreadable,
            fresh: false,
            settled: false,
        }
    }

    pub fn id(&self, index: usize) -> DiskId {
        DiskId {
            index,
            geometry: self.geometry,
        }
    }

    pub fn name(&self) -> &str {
        &self.meta.name
    }

    /// Clusters that the unfinished sync which is resumed has stored anew because they were damaged.
    pub fn repaired_before(&self) -> u64 {
        self.before.as_ref().map_or(0, |before| before.repaired_clusters)
    }

    pub fn base(&self) -> Option<&Base> {
        self.base.as_ref()
    }

    /// Whether anything came since the last checkpoint.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Whether the next pass is not the first one.
    pub fn was_passed(&self) -> bool {
        self.passes > 0
    }

    /// Begins a pass. Before a second one the caller has made a checkpoint.
    ///
    /// # Errors
    /// `Invalid` while another pass over the disk has not ended.
    pub fn begin_pass(&mut self, method: Method, reason: &str, image: ImageId) -> Result<()> {
        if self.in_pass {
            return Err(self.invalid("a pass over it has not ended"));
        }
        if self.was_passed() {
            self.builder.rewind();
            if let Some(tree) = self.builder.tree() {
                let like = self.base.as_ref().and_then(Base::disk);
                let disk = Disk::of_tree(image, &self.meta.name, tree.clone(), like);
                let due = self.builder.due().clone();
                self.base = Some(Base::new(disk, to_compare_anew(due, self.unreadable.as_ref())));
            }
        }
        // What could not be read comes again: nothing is compared with it.
        if method != Method::Tracked {
            self.unreadable = Some(ClusterSet::default());
        }
        // What is read completely after all was found that way, whatever had been tried before.
        if self.method.is_none() || method != Method::Tracked {
            self.method = Some((method, reason.to_owned()));
        }
        self.in_pass = true;
        Ok(())
    }

    /// Notes what was read to check the tracker, beside the passes.
    pub fn note_audit(&mut self, audited: Audited) {
        self.audited = audited;
    }

    /// Clusters that have to be stored anew whatever the source holds: those that are known to be damaged in what the
    /// disk is built upon, and all that lie below a node of it that cannot be read. For the latter the nodes above
    /// `leaves` are read, or all if one of them or the counts are damaged.
    ///
    /// # Errors
    /// When a node cannot be read for another reason than damage.
    pub fn to_store_anew(&self, leaves: Range<u64>) -> Result<ClusterSet> {
        let mut found = self.builder.due().clone();
        let Some(tree) = self.builder.tree() else {
            return Ok(found);
        };
        let known = self.builder.lost();
        let whole = 0..tree.geometry().leaf_count();
        let must_read_all = !self.builder.is_counted() || !found.is_empty();
        if must_read_all || below_unreadable(tree, leaves, known, &mut found)? {
            below_unreadable(tree, whole, known, &mut found)?;
        }
        Ok(found)
    }

    /// Takes the next cluster that differs.
    ///
    /// # Errors
    /// `Invalid` outside a pass, and for a cluster that does not come in order; errors of the storage.
    pub fn push(&mut self, update: &ClusterUpdate<'_>) -> Result<()> {
        if !self.in_pass {
            return Err(self.invalid("no pass over it has begun"));
        }
        self.fresh = true;
        self.settled = false;
        if let Some(unreadable) = &mut self.unreadable {
            match update.codec {
                Codec::Damaged => unreadable.insert(update.index..update.index + 1),
                _ => drop(unreadable.remove(update.index)),
            }
        }
        self.builder.push(update)
    }

    /// Clusters of which sectors could not be read at the source when they were read last; `None` where they are not known
    /// and all of the disk has to be read.
    pub fn unreadable(&self) -> Option<&ClusterSet> {
        self.unreadable.as_ref()
    }

    /// Ends a pass, in which `compared_bytes` were compared.
    ///
    /// # Errors
    /// `Invalid` where no pass has begun.
    pub fn end_pass(&mut self, compared_bytes: u64) -> Result<()> {
        if !self.in_pass {
            return Err(self.invalid("no pass over it has begun"));
        }
        self.in_pass = false;
        self.passes += 1;
        self.compared_bytes += compared_bytes;
        Ok(())
    }

    /// Whether the disk takes memory for a layer being written.
    pub fn holds_layer(&self) -> bool {
        self.builder.holds_layer()
    }

    /// Frees that memory.
    ///
    /// # Errors
    /// Errors of the storage.
    pub fn release(&mut self) -> Result<()> {
        self.builder.release()
    }

    /// Makes what came so far durable, and describes it for a checkpoint.
    ///
    /// # Errors
    /// Errors of the storage.
    pub fn checkpoint(&mut self) -> Result<(DiskRecord, Vec<LayerRecord>)> {
        let built = if self.settled {
            self.builder.built()
        } else {
            self.builder.checkpoint()?
        };
        self.settled = true;
        let layers = layer_records(&self.meta.name, &built.layers, &[]);
        Ok((self.record(&built), layers))
    }

    /// A checkpoint holds what came so far.
    pub fn saved(&mut self) {
        self.fresh = false;
    }

    /// What speaks against committing the disk as it is.
    ///
    /// # Errors
    /// `Invalid` while a pass has not ended, and where none was made.
    pub fn check_whole(&self) -> Result<()> {
        match (self.in_pass, self.passes) {
            (true, _) => Err(self.invalid("a pass over it has not ended")),
            (false, 0) => Err(self.invalid("no pass over it was made")),
            _ => Ok(()),
        }
    }

    /// Stores what is open, and describes the disk for the manifest.
    ///
    /// # Errors
    /// Errors of the storage.
    pub fn finish(&mut self) -> Result<(DiskRecord, Vec<LayerRecord>)> {
        let built = self.builder.finish()?;
        let layers = layer_records(&self.meta.name, &built.layers, &built.packed);
        Ok((self.record(&built), layers))
    }

    fn record(&self, built: &Built) -> DiskRecord {
        let before = self.before.as_ref();
        let digest = DiskDigest::new(self.geometry, built.root.digest).digest;
        let (method, method_reason) = self
            .method
            .clone()
            .unwrap_or((Method::Full, "nothing was compared yet".to_owned()));
        let mut record = DiskRecord {
            name: self.meta.name.clone(),
            size_bytes: self.meta.size_bytes,
            logical_block_size: self.meta.logical_block_size,
            identity: self.meta.identity.clone(),
            root: RootRecord::new(&built.root),
            digest: digest.to_string(),
            method,
            method_reason,
            compared_bytes: self.compared_bytes + self.audited.bytes,
            dirty_bytes: built.stats.dirty_bytes + before.map_or(0, |before| before.dirty_bytes),
            stored_bytes: built.stats.stored_bytes + before.map_or(0, |before| before.stored_bytes),
            repaired_clusters: built.stats.repaired_clusters
                + before.map_or(0, |before| before.repaired_clusters),
            audited_bytes: self.audited.bytes,
            audit_position: self.audited.position,
            unreadable_clusters: 0,
            unreadable: Vec::new(),
        };
        match &self.unreadable {
            Some(clusters) => record.note_unreadable(clusters),
            // As in what the disk is built upon: some, and not known which.
            None => record.unreadable_clusters = 1,
        }
        record
    }

    fn invalid(&self, what: &str) -> Error {
        Error::invalid(format!("disk {}: {what}", self.meta.name))
    }
}

/// Clusters that are to be taken for changed: those that have to be stored anew, and those that could not be read at the source,
/// which perhaps can be by now.
pub(crate) fn to_compare_anew(due: ClusterSet, unreadable: Option<&ClusterSet>) -> ClusterSet {
    match unreadable {
        Some(unreadable) => due.union(unreadable),
        None => due,
    }
}

/// Adds the clusters below nodes that cannot be read, of those above some leaves, unless they are `known`. Returns whether
/// there are any.
fn below_unreadable(
    tree: &Tree,
    leaves: Range<u64>,
    known: &ClusterSet,
    found: &mut ClusterSet,
) -> Result<bool> {
    let mut any = false;
    let end = leaves.end.min(tree.geometry().leaf_count());
    let mut next = leaves.start;
    while next < end {
        let id = NodeId {
            level: 0,
            index: next,
        };
        next += 1;
        match tree.find_node(id) {
            Ok(_) => {}
            Err(Unread { id, error }) if error.is_lost() => {
                let clusters = tree.geometry().clusters_of(id.level, id.index);
                // Nothing else can be found out below it.
                next = next.max(parent_index(clusters.end));
                if !known.covers(&clusters) {
                    found.insert(clusters);
                    any = true;
                }
            }
            Err(Unread { error, .. }) => return Err(error),
        }
    }
    Ok(any)
}

/// The records of one disk's layers.
fn layer_records(disk: &str, layers: &LayerTable, packed: &[u32]) -> Vec<LayerRecord> {
    let record = |(id, entry): (u32, &crate::format::layer::LayerEntry)| LayerRecord {
        id,
        uuid: entry.uuid,
        disk: disk.to_owned(),
        length: entry.len,
        referenced: entry.referenced,
        packed: packed.contains(&id),
    };
    layers.iter().map(record).collect()
}
