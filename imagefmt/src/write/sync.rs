//! Writing one image: numbers are taken, disks are built, the manifest is committed.

use crate::error::{Error, ErrorKind, Result, Within};
use crate::format::geometry::{ClusterSize, Geometry};
use crate::format::id::Uuid;
use crate::format::layer::{LayerIdentity, LayerTable, LayerWriter};
use crate::format::manifest::{Consistency, DiskRecord, Kind, LayerRecord, Manifest, ParentRef};
use crate::format::name::check_name;
use crate::format::sealed;
use crate::read::image::{Disk, Image};
use crate::storage::paths::{images_dir, layers_dir, manifest_path};
use crate::storage::{Lock, Storage};
use crate::store::chain::{self, ChainRecord};
use crate::store::{Chain, Store};
use crate::write::builder::LayerSource;
use crate::write::disk_writer::{DiskMeta, DiskWriter};
use jiff::Timestamp;
use std::sync::Arc;

/// The sync of one image into a chain, as the chain's only writer.
///
/// Dropped without [`commit`](Self::commit), it keeps what its last checkpoint describes and removes the
/// rest: no manifest lists it.
#[derive(Debug)]
pub struct ImageWriter {
    pub(crate) store: Store,
    pub(crate) readers: Chain,
    job: String,
    pub(crate) source: NewLayers,
    cluster_size: ClusterSize,
    parent: Option<Image>,
    /// The unfinished sync that this one goes on with.
    pub(crate) resumed: Option<Image>,
    skipped_images: PassedOver,
    sequence: u64,
    begun: bool,
    started: Timestamp,
    pub(crate) disks: Vec<DiskRecord>,
    pub(crate) layers: Vec<LayerRecord>,
    /// The checkpoint that this sync saved last.
    pub(crate) saved: Option<Manifest>,
    /// A manifest or checkpoint was given its name, or may have been: what it lists must stay.
    pub(crate) named: bool,
    _lock: Lock,
}

/// Gives the builder layers with ids that were never used.
#[derive(Debug)]
pub(crate) struct NewLayers {
    pub storage: Arc<dyn Storage>,
    /// The chain's name.
    pub chain: String,
    record: ChainRecord,
    cluster_size: ClusterSize,
    /// Those that were given out.
    pub created: Vec<u32>,
}

impl Store {
    /// Begins an image of `job`: takes the chain's writer lock, creates the chain where there is none, and
    /// goes on with the unfinished sync where there is one.
    ///
    /// `cluster_size` is that of a new chain (default 64 KiB); an existing one keeps its own. Nothing is
    /// written to an existing chain before the first [`disk`](ImageWriter::disk).
    pub fn begin(
        &self,
        job: &str,
        cluster_size: Option<ClusterSize>,
        disks: &[String],
    ) -> Result<ImageWriter> {
        let chain = self.chain_to_write(job)?;
        self.begin_in(&chain, job, cluster_size, disks)
    }

    /// Begins an image of a job that continues the chain of a finished one, `from`.
    pub fn take_up(&self, job: &str, from: &str, disks: &[String]) -> Result<ImageWriter> {
        let chain = self.chain_to_take_up(job, from)?;
        self.begin_in(&chain, job, None, disks)
    }

    fn begin_in(
        &self,
        chain: &str,
        job: &str,
        cluster_size: Option<ClusterSize>,
        disks: &[String],
    ) -> Result<ImageWriter> {
        disks.iter().try_for_each(|name| check_name("disk", name))?;
        let storage = self.storage().clone();
        // A crash may have kept the name of one directory and not that of the other.
        let missing = |dir: String| storage.list(&dir).is_err();
        if missing(images_dir(chain)) || missing(layers_dir(chain)) {
            chain::create_dirs(&*storage, chain).within(|| format!("create the chain of job {job}"))?;
        }
        let lock = self.lock_writer(chain, job)?;
        let record = ChainRecord::load(self, chain, cluster_size, disks).within(|| format!("job {job}"))?;
        let own = record.cluster_size()?;
        if let Some(wanted) = cluster_size.filter(|&wanted| wanted != own) {
            return Err(Error::invalid(format!(
                "job {job} has clusters of {own}, fixed with its first image, not of {wanted}: \
                 leave --cluster-size out, or sync to a new job"
            )));
        }
        check_disks(job, &record.disks, disks)?;
        ImageWriter::new(self, chain, job, record, lock)
    }
}

/// Refuses a sync of other disks than the job's.
fn check_disks(job: &str, of_job: &[String], given: &[String]) -> Result<()> {
    if let Some(stranger) = given.iter().find(|name| !of_job.contains(name)) {
        return Err(Error::invalid(format!(
            "job {job} is of disk {}, and {stranger} is not among them: \
             name it as the job does (--disk NAME=DEV), or give --job another name",
            of_job.join(", ")
        )));
    }
    match of_job.iter().find(|name| !given.contains(name)) {
        None => Ok(()),
        Some(missing) => Err(Error::invalid(format!(
            "job {job} also has disk {missing}: every image holds all disks of its job, so give it with --disk too"
        ))),
    }
}

impl ImageWriter {
    fn new(store: &Store, chain: &str, job: &str, record: ChainRecord, lock: Lock) -> Result<Self> {
        let readers = store.chain(chain)?;
        let (parent, mut skipped_images) = newest_readable(store, &readers)?;
        if parent.is_none() && !skipped_images.is_empty() {
            let (_, error) = skipped_images.swap_remove(0);
            return Err(error.within(format!("every image of job {job} is damaged: sync to a new job")));
        }
        let resumed = store.resumable(&readers)?;
        let cluster_size = record.cluster_size()?;
        Ok(Self {
            store: store.clone(),
            readers,
            job: job.to_owned(),
            cluster_size,
            sequence: record.next_sequence,
            source: NewLayers {
                storage: store.storage().clone(),
                chain: chain.to_owned(),
                record,
                cluster_size,
                created: Vec::new(),
            },
            parent,
            started: resumed
                .as_ref()
                .map_or_else(Timestamp::now, |resumed| resumed.manifest().started),
            resumed,
            skipped_images,
            begun: false,
            disks: Vec::new(),
            layers: Vec::new(),
            saved: None,
            named: false,
            _lock: lock,
        })
    }

    /// The image that this one is made from.
    pub fn parent(&self) -> Option<&Image> {
        self.parent.as_ref()
    }

    /// The unfinished sync that this one goes on with: what it stored need not be stored again.
    pub fn resumed(&self) -> Option<&Image> {
        self.resumed.as_ref()
    }

    /// Whether the chain has a checkpoint for the next sync to go on with, should this one not end.
    pub fn has_checkpoint(&self) -> bool {
        self.saved.is_some() || self.resumed.is_some()
    }

    /// Newer images that could not be used as the parent, and why.
    pub fn skipped_images(&self) -> &[(u64, Error)] {
        &self.skipped_images
    }

    /// Cluster size of the chain.
    pub fn cluster_size(&self) -> ClusterSize {
        self.cluster_size
    }

    /// The number that the image will have.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How people will write the image: `web01/7`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.job, self.sequence)
    }

    /// Begins a disk. Disks are written one after another.
    pub fn disk(&mut self, meta: DiskMeta) -> Result<DiskWriter<'_>> {
        if !self.source.record.disks.contains(&meta.name)
            || self.disks.iter().any(|disk| disk.name == meta.name)
        {
            return Err(Error::invalid(format!("disk {} does not belong here", meta.name)));
        }
        let geometry = Geometry::new(meta.size_bytes, self.cluster_size)?;
        let resumed = disk_of(self.resumed.as_ref(), &meta.name);
        let base = resumed
            .clone()
            .or_else(|| disk_of(self.parent.as_ref(), &meta.name));
        let before = self
            .resumed
            .as_ref()
            .and_then(|resumed| resumed.manifest().disk(&meta.name));
        let before = before.cloned();
        if !self.begun {
            self.start()?;
        }
        Ok(DiskWriter::new(self, meta, geometry, base, before))
    }

    /// Mends what a crash left, and takes the image's number: raised and durable before it is used.
    fn start(&mut self) -> Result<()> {
        self.begun = true;
        let repaired = self.store.recover(&self.source.chain)?;
        for kept in &repaired.kept {
            tracing::warn!(chain = %self.source.chain, "kept: {kept}");
        }
        self.source.record.next_sequence = self
            .sequence
            .checked_add(1)
            .ok_or_else(|| Error::damaged("the chain is out of image numbers"))?;
        self.source.save_record()
    }

    /// Makes the image exist. When this returns, it survives a power cut.
    pub fn commit(mut self, consistency: Consistency, consistency_reason: &str) -> Result<Manifest> {
        if self.disks.len() != self.source.record.disks.len() {
            return Err(Error::invalid("not every disk of the job was written"));
        }
        let (disks, layers) = (std::mem::take(&mut self.disks), std::mem::take(&mut self.layers));
        let manifest = self.describe(disks, layers, consistency, consistency_reason)?;
        manifest.check(self.sequence)?;
        let storage = &*self.source.storage;
        let chain = &self.source.chain;
        // The layers' data is durable since each disk was finished; now their names.
        storage.sync_dir(&layers_dir(chain))?;
        let path = manifest_path(chain, self.sequence);
        let temporary = sealed::write_temporary(storage, &path, &manifest)?;
        let _reclaim = self.store.lock_reclaim(chain)?;
        // From here on the manifest may exist even if we are told that something failed.
        self.named = true;
        sealed::put_in_place(storage, &images_dir(chain), &temporary, &path)
            .within(|| format!("commit image {}", self.label()))?;
        self.forget_checkpoints();
        Ok(manifest)
    }

    /// The manifest of this image with these disks and layers.
    pub(crate) fn describe(
        &self,
        disks: Vec<DiskRecord>,
        layers: Vec<LayerRecord>,
        consistency: Consistency,
        consistency_reason: &str,
    ) -> Result<Manifest> {
        let parent = self.origin();
        Ok(Manifest {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            chain: self.source.record.id,
            job: self.job.clone(),
            sequence: self.sequence,
            id: Uuid::random()?,
            kind: if parent.is_some() {
                Kind::Incremental
            } else {
                Kind::Full
            },
            parent,
            started: self.started,
            finished: Timestamp::now(),
            consistency,
            consistency_reason: consistency_reason.to_owned(),
            cluster_size: self.cluster_size.bytes(),
            disks,
            layers,
        })
    }

    /// What the image is made from: a resumed sync's own parent, should that be gone meanwhile.
    fn origin(&self) -> Option<ParentRef> {
        if let Some(resumed) = &self.resumed {
            return resumed.manifest().parent.clone();
        }
        self.parent.as_ref().map(|parent| ParentRef {
            sequence: parent.manifest().sequence,
            id: parent.manifest().id,
        })
    }
}

fn disk_of(image: Option<&Image>, name: &str) -> Option<Disk> {
    image?.disks().iter().find(|disk| disk.name() == name).cloned()
}

impl NewLayers {
    fn save_record(&self) -> Result<()> {
        self.record.save(&*self.storage, &self.chain)
    }
}

impl LayerSource for NewLayers {
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
        if !self.named && self.begun {
            self.give_up();
        }
    }
}

/// The records of one disk's layers.
pub(crate) fn layer_records<'a>(
    disk: &'a str,
    layers: &'a LayerTable,
    packed: &'a [u32],
) -> impl Iterator<Item = LayerRecord> + 'a {
    layers.iter().map(move |(id, entry)| LayerRecord {
        id,
        uuid: entry.uuid,
        disk: disk.to_owned(),
        length: entry.len,
        referenced: entry.referenced,
        packed: packed.contains(&id),
    })
}

/// Images that could not be opened, by number, and why.
type PassedOver = Vec<(u64, Error)>;

/// The newest image that can be opened, and the newer ones that cannot.
fn newest_readable(store: &Store, chain: &Chain) -> Result<(Option<Image>, PassedOver)> {
    let mut damaged = Vec::new();
    for sequence in store.sequences(chain.name())?.into_iter().rev() {
        match chain.image(&store.image_id(chain.name(), sequence)) {
            Ok(image) => return Ok((Some(image), damaged)),
            Err(error) if error.kind() == ErrorKind::Damaged => damaged.push((sequence, error)),
            // Busy or unreadable for now is no reason to build on an older image, or on none.
            Err(error) => return Err(error),
        }
    }
    Ok((None, damaged))
}
