//! Writing one image: numbers are taken, disks are built, the manifest is committed.

use crate::builder::{BuildStats, Builder, ClusterUpdate, LayerSource};
use crate::chain::{self, ChainRecord};
use crate::error::{Error, ErrorKind, Result, Within};
use crate::geometry::{ClusterSize, Geometry};
use crate::id::Uuid;
use crate::image::{Disk, Image};
use crate::layer::{LayerIdentity, LayerTable, LayerWriter, layer_path};
use crate::manifest::{
    Consistency, DiskIdentity, DiskRecord, Kind, LayerRecord, Manifest, Method, ParentRef, RootRecord,
};
use crate::name::check_name;
use crate::sealed;
use crate::storage::{Lock, LockMode, Storage};
use crate::store::{Chain, Store, images_dir, manifest_path};
use jiff::Timestamp;
use std::sync::Arc;

/// The sync of one image into a chain, as the chain's only writer.
///
/// Dropped without [`commit`](Self::commit), it removes the layers that it wrote: no manifest lists them.
#[derive(Debug)]
pub struct ImageWriter {
    storage: Arc<dyn Storage>,
    chain: String,
    job: String,
    record: ChainRecord,
    cluster_size: ClusterSize,
    parent: Option<Image>,
    passed_over: PassedOver,
    sequence: u64,
    started: Timestamp,
    disks: Vec<DiskRecord>,
    layers: Vec<LayerRecord>,
    created: Vec<u32>,
    committed: bool,
    _lock: Lock,
}

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

impl Store {
    /// Begins an image of `job`: takes the chain's writer lock, creates the chain where there is none.
    ///
    /// `cluster_size` is that of a new chain (default 64 KiB); an existing one keeps its own. Nothing is
    /// written to an existing chain before the first [`disk`](ImageWriter::disk).
    pub fn begin(
        &self,
        job: &str,
        cluster_size: Option<ClusterSize>,
        disks: &[String],
    ) -> Result<ImageWriter> {
        check_name("job", job)?;
        disks.iter().try_for_each(|name| check_name("disk", name))?;
        let storage = self.storage().clone();
        let exists = storage.list(&images_dir(job)).is_ok();
        if !exists {
            chain::create_dirs(&*storage, job).within(|| format!("create chain {job}"))?;
        }
        let lock = storage
            .lock(&format!("{job}/writer.lock"), LockMode::Exclusive)
            .map_err(|error| {
                if error.kind() == ErrorKind::Busy {
                    error.within(format!(
                        "job {job} is being synced by another process: wait until it is done"
                    ))
                } else {
                    error.within(format!("lock job {job}"))
                }
            })?;
        let record = ChainRecord::load(self, job, cluster_size, disks).within(|| format!("chain {job}"))?;
        let own = record.cluster_size()?;
        if let Some(wanted) = cluster_size.filter(|&wanted| wanted != own) {
            return Err(Error::invalid(format!(
                "job {job} has clusters of {own}, fixed with its first image, not of {wanted}: \
                 leave --cluster-size out, or sync to a new job"
            )));
        }
        ImageWriter::new(self, job, record, disks, lock)
    }
}

impl ImageWriter {
    fn new(store: &Store, job: &str, record: ChainRecord, disks: &[String], lock: Lock) -> Result<Self> {
        let known = |name: &String| record.disks.contains(name);
        if let Some(stranger) = disks.iter().find(|name| !known(name)) {
            return Err(Error::invalid(format!(
                "job {job} is of disk {}, and {stranger} is not among them: \
                 name it as the job does (--disk NAME=DEV), or give --job another name",
                record.disks.join(", ")
            )));
        }
        if let Some(missing) = record.disks.iter().find(|name| !disks.contains(name)) {
            return Err(Error::invalid(format!(
                "job {job} also has disk {missing}: every image holds all disks of its job, so give it with --disk too"
            )));
        }
        let chain = store.chain(job)?;
        let (parent, mut passed_over) = newest_readable(store, &chain)?;
        if parent.is_none() && !passed_over.is_empty() {
            let (_, error) = passed_over.swap_remove(0);
            return Err(error.within(format!("every image of job {job} is damaged: sync to a new job")));
        }
        Ok(Self {
            storage: store.storage().clone(),
            chain: job.to_owned(),
            job: job.to_owned(),
            cluster_size: record.cluster_size()?,
            sequence: record.next_sequence,
            record,
            parent,
            passed_over,
            started: Timestamp::now(),
            disks: Vec::new(),
            layers: Vec::new(),
            created: Vec::new(),
            committed: false,
            _lock: lock,
        })
    }

    /// The image that this one is made from.
    pub fn parent(&self) -> Option<&Image> {
        self.parent.as_ref()
    }

    /// Newer images that could not be used as the parent, and why.
    pub fn passed_over(&self) -> &[(u64, Error)] {
        &self.passed_over
    }

    /// Cluster size of the chain.
    pub fn cluster_size(&self) -> ClusterSize {
        self.cluster_size
    }

    /// How people will write the image: `web01/7`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.job, self.sequence)
    }

    /// Begins a disk. Disks are written one after another.
    pub fn disk(&mut self, meta: DiskMeta) -> Result<DiskWriter<'_>> {
        if !self.record.disks.contains(&meta.name) || self.disks.iter().any(|disk| disk.name == meta.name) {
            return Err(Error::invalid(format!("disk {} does not belong here", meta.name)));
        }
        let geometry = Geometry::new(meta.size_bytes, self.cluster_size)?;
        let parent = match &self.parent {
            Some(parent) => parent
                .disks()
                .iter()
                .find(|disk| disk.name() == meta.name)
                .cloned(),
            None => None,
        };
        if self.disks.is_empty() && self.created.is_empty() {
            self.take_number()?;
        }
        Ok(DiskWriter {
            image: self,
            meta,
            geometry,
            parent,
        })
    }

    /// Takes the image's number: raised and durable before it is used, so never used twice.
    fn take_number(&mut self) -> Result<()> {
        self.record.next_sequence = self
            .sequence
            .checked_add(1)
            .ok_or_else(|| Error::damaged("the chain is out of image numbers"))?;
        self.save_record()
    }

    fn save_record(&self) -> Result<()> {
        self.record.save(&*self.storage, &self.chain)
    }

    /// Makes the image exist. When this returns, it survives a power cut.
    pub fn commit(mut self, consistency: Consistency, consistency_reason: &str) -> Result<Manifest> {
        if self.disks.len() != self.record.disks.len() {
            return Err(Error::invalid("not every disk of the job was written"));
        }
        let manifest = self.manifest(consistency, consistency_reason)?;
        manifest.check(self.sequence)?;
        // The layers' data is durable since each disk was finished; now their names.
        self.storage.sync_dir(&format!("{}/layers", self.chain))?;
        let path = manifest_path(&self.chain, self.sequence);
        let temporary = sealed::write_temporary(&*self.storage, &path, &manifest)?;
        // From here on the manifest may exist even if we are told that something failed.
        self.committed = true;
        sealed::put_in_place(&*self.storage, &images_dir(&self.chain), &temporary, &path)
            .within(|| format!("commit image {}", self.label()))?;
        Ok(manifest)
    }

    fn manifest(&mut self, consistency: Consistency, consistency_reason: &str) -> Result<Manifest> {
        let parent = self.parent.as_ref().map(Image::manifest);
        Ok(Manifest {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            chain: self.record.id,
            job: self.job.clone(),
            sequence: self.sequence,
            id: Uuid::random()?,
            parent: parent.map(|parent| ParentRef {
                sequence: parent.sequence,
                id: parent.id,
            }),
            started: self.started,
            finished: Timestamp::now(),
            kind: if parent.is_some() {
                Kind::Incremental
            } else {
                Kind::Full
            },
            consistency,
            consistency_reason: consistency_reason.to_owned(),
            cluster_size: self.cluster_size.bytes(),
            disks: std::mem::take(&mut self.disks),
            layers: std::mem::take(&mut self.layers),
        })
    }
}

impl LayerSource for ImageWriter {
    fn create(&mut self) -> Result<LayerWriter> {
        let layer = self.record.next_layer;
        self.record.next_layer = layer
            .checked_add(1)
            .ok_or_else(|| Error::invalid("the chain is out of layer ids"))?;
        self.save_record()?;
        let uuid = Uuid::random()?;
        let identity = LayerIdentity {
            chain: self.record.id,
            uuid,
            layer,
            cluster_size: self.cluster_size,
        };
        let writer = LayerWriter::create(&*self.storage, &self.chain, identity);
        // A file that was there before is not ours: giving up must not remove it.
        if !writer
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Exists)
        {
            self.created.push(layer);
        }
        writer
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        for &layer in &self.created {
            let path = layer_path(&self.chain, layer);
            if let Err(error) = self.storage.remove(&path) {
                // Nothing depends on it: the layer is listed by no manifest.
                tracing::debug!(%path, %error, "leave a layer of the sync that failed");
            }
        }
    }
}

/// Images that could not be opened, by number, and why.
type PassedOver = Vec<(u64, Error)>;

/// The newest image that can be opened, and the newer ones that cannot.
fn newest_readable(store: &Store, chain: &Chain) -> Result<(Option<Image>, PassedOver)> {
    let mut damaged = Vec::new();
    for sequence in store.sequences(chain.name())?.into_iter().rev() {
        match chain.image(sequence) {
            Ok(image) => return Ok((Some(image), damaged)),
            Err(error) if error.kind() == ErrorKind::Damaged => damaged.push((sequence, error)),
            // Busy or unreadable for now is no reason to build on an older image, or on none.
            Err(error) => return Err(error),
        }
    }
    Ok((None, damaged))
}

/// One disk of an image being written.
#[derive(Debug)]
pub struct DiskWriter<'a> {
    image: &'a mut ImageWriter,
    meta: DiskMeta,
    geometry: Geometry,
    parent: Option<Disk>,
}

impl DiskWriter<'_> {
    /// Size and cluster size.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The same disk in the parent image, to compare with.
    pub fn parent(&self) -> Option<&Disk> {
        self.parent.as_ref()
    }

    /// Stores what `fill` pushes, in ascending order, and records the disk in the image.
    ///
    /// `fill` gets the function that takes each cluster; what it returns describes how changes were found.
    /// Clusters that it does not push are as in the parent, or zero where there is none.
    pub fn write<E: From<Error>>(
        self,
        fill: impl FnOnce(&mut dyn FnMut(&ClusterUpdate<'_>) -> Result<()>) -> std::result::Result<Comparison, E>,
    ) -> std::result::Result<DiskRecord, E> {
        let Self {
            image,
            meta,
            geometry,
            parent,
        } = self;
        let tree = parent.map(|disk| disk.tree().clone());
        let mut builder = Builder::new(geometry, tree, image)?;
        let comparison = fill(&mut |update| builder.push(update))?;
        let built = builder.finish()?;
        let record = record(meta, geometry, comparison, &built.root, built.stats);
        image.add_layers(&record.name, &built.layers, &built.written);
        image.disks.push(record.clone());
        Ok(record)
    }
}

impl ImageWriter {
    fn add_layers(&mut self, disk: &str, layers: &LayerTable, written: &[u32]) {
        self.layers.extend(layers.iter().map(|(id, entry)| LayerRecord {
            id,
            uuid: entry.uuid,
            disk: disk.to_owned(),
            length: entry.len,
            referenced: entry.referenced,
            packed: written.contains(&id),
        }));
    }
}

fn record(
    meta: DiskMeta,
    geometry: Geometry,
    comparison: Comparison,
    root: &crate::pointer::Pointer,
    stats: BuildStats,
) -> DiskRecord {
    DiskRecord {
        name: meta.name,
        size_bytes: meta.size_bytes,
        logical_block_size: meta.logical_block_size,
        identity: meta.identity,
        root: RootRecord::new(root),
        digest: crate::digest::DiskDigest::new(geometry, root.digest)
            .digest
            .to_string(),
        method: comparison.method,
        method_reason: comparison.reason,
        compared_bytes: comparison.compared_bytes,
        dirty_bytes: stats.dirty_bytes,
        stored_bytes: stats.stored_bytes,
    }
}
