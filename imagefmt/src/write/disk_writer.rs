//! Writing one disk of an image: clusters in ascending order, with checkpoints on the way.

use crate::error::{Error, Result};
use crate::format::geometry::Geometry;
use crate::format::manifest::{DiskIdentity, DiskRecord, Method, RootRecord};
use crate::read::image::Disk;
use crate::write::builder::{Builder, Built, ClusterUpdate};
use crate::write::sync::{ImageWriter, layer_records};

/// What the daemon knows of a disk that goes into its record.
#[derive(Debug, Clone)]
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

/// How a disk was compared, for its record.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// How changes were found.
    pub method: Method,
    /// Why that way.
    pub reason: String,
    /// Bytes read and compared.
    pub compared_bytes: u64,
}

/// One disk of an image being written.
#[derive(Debug)]
pub struct DiskWriter<'a> {
    image: &'a mut ImageWriter,
    meta: DiskMeta,
    geometry: Geometry,
    base: Option<Disk>,
    /// The disk's record in the unfinished sync that this one goes on with.
    before: Option<DiskRecord>,
}

impl<'a> DiskWriter<'a> {
    pub(crate) fn new(
        image: &'a mut ImageWriter,
        meta: DiskMeta,
        geometry: Geometry,
        base: Option<Disk>,
        before: Option<DiskRecord>,
    ) -> Self {
        Self {
            image,
            meta,
            geometry,
            base,
            before,
        }
    }

    /// Size and cluster size.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What to compare the disk with: the same disk in the unfinished sync, or else in the parent image.
    pub fn base(&self) -> Option<&Disk> {
        self.base.as_ref()
    }

    /// Stores what `fill` pushes, in ascending order, and records the disk in the image.
    ///
    /// What `fill` returns describes how changes were found. Clusters that it does not push are as in
    /// [`base`](Self::base), or zero where there is none.
    pub fn write<E: From<Error>>(
        self,
        fill: impl FnOnce(&mut DiskSink<'_>) -> std::result::Result<Comparison, E>,
    ) -> std::result::Result<DiskRecord, E> {
        let files = self.image.readers.files(self.geometry.cluster_size());
        let tree = self.base.map(|disk| disk.tree().clone());
        let builder = Builder::new(self.geometry, tree, files)?;
        let mut sink = DiskSink {
            image: self.image,
            describe: Describe {
                meta: self.meta,
                geometry: self.geometry,
                before: self.before,
            },
            builder,
            fresh: false,
        };
        let comparison = fill(&mut sink)?;
        let built = sink.builder.finish(&mut sink.image.source)?;
        let record = sink.describe.record(&built, comparison);
        let layers = layer_records(&record.name, &built.layers, &built.packed);
        sink.image.layers.extend(layers);
        sink.image.disks.push(record.clone());
        Ok(record)
    }
}

/// Takes a disk's clusters.
#[derive(Debug)]
pub struct DiskSink<'a> {
    image: &'a mut ImageWriter,
    describe: Describe,
    builder: Builder,
    /// Whether anything came since the last checkpoint.
    fresh: bool,
}

impl DiskSink<'_> {
    /// Takes the next cluster; indices must ascend. One that is as in the base is not stored again.
    pub fn push(&mut self, update: &ClusterUpdate<'_>) -> Result<()> {
        self.fresh = true;
        self.builder.push(update, &mut self.image.source)
    }

    /// Makes what came so far durable, so that a later sync goes on from here should this one not end.
    ///
    /// It waits for what is being written, and for whoever gives back space in the chain: once in several
    /// seconds is often enough. Returns whether there is now a checkpoint with all that came.
    pub fn checkpoint(&mut self) -> Result<bool> {
        if !self.fresh {
            return Ok(self.image.saved.is_some());
        }
        let Some(built) = self.builder.checkpoint(&mut self.image.source)? else {
            return Ok(false);
        };
        let unfinished = Comparison {
            method: Method::Scan,
            reason: "unfinished".to_owned(),
            compared_bytes: 0,
        };
        let record = self.describe.record(&built, unfinished);
        let mut layers = self.image.layers.clone();
        layers.extend(layer_records(&record.name, &built.layers, &[]));
        let mut disks = self.image.disks.clone();
        disks.push(record);
        self.image.keep_resumed(&mut disks, &mut layers);
        self.image.save_checkpoint(disks, layers)?;
        self.fresh = false;
        Ok(true)
    }
}

/// What a disk's record is made of, beside its tree.
#[derive(Debug)]
struct Describe {
    meta: DiskMeta,
    geometry: Geometry,
    before: Option<DiskRecord>,
}

impl Describe {
    fn record(&self, built: &Built, comparison: Comparison) -> DiskRecord {
        let before = self.before.as_ref();
        let digest = crate::format::digest::DiskDigest::new(self.geometry, built.root.digest).digest;
        DiskRecord {
            name: self.meta.name.clone(),
            size_bytes: self.meta.size_bytes,
            logical_block_size: self.meta.logical_block_size,
            identity: self.meta.identity.clone(),
            root: RootRecord::new(&built.root),
            digest: digest.to_string(),
            method: comparison.method,
            method_reason: comparison.reason,
            compared_bytes: comparison.compared_bytes,
            dirty_bytes: built.stats.dirty_bytes + before.map_or(0, |before| before.dirty_bytes),
            stored_bytes: built.stats.stored_bytes + before.map_or(0, |before| before.stored_bytes),
        }
    }
}
