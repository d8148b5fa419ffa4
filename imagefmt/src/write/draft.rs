//! An image being written: its disks, its new layers, and the checkpoint saved of it last.

use crate::error::{Error, Result};
use crate::format::clusters::ClusterSet;
use crate::format::geometry::Geometry;
use crate::format::id::Uuid;
use crate::format::instant::InstantRecord;
use crate::format::manifest::{Consistency, DiskRecord, Kind, LayerRecord, Manifest, Method, ParentRef};
use crate::format::name::ImageId;
use crate::read::image::{Disk, Image};
use crate::store::{Chain, Store};
use crate::write::base::Base;
use crate::write::builder::{Builder, ClusterUpdate};
use crate::write::disk::{DiskId, DiskMeta, DraftDisk, to_compare_anew};
use crate::write::known::{KnownDamage, Suspects};
use crate::write::new_layers::NewLayers;
use jiff::Timestamp;

/// Layers that stay open between two passes; each takes the buffers of a writer, 17 MiB.
const OPEN_LAYERS_MAX: usize = 4;

/// An image before it has a manifest.
#[derive(Debug)]
pub(crate) struct Draft {
    pub store: Store,
    pub readers: Chain,
    pub new_layers: NewLayers,
    pub job: String,
    pub sequence: u64,
    pub parent: Option<Image>,
    /// The unfinished sync that this one resumes.
    pub resumed: Option<Image>,
    /// What is known to be damaged in either.
    pub known: KnownDamage,
    /// Whether a disk that is smaller than in the parent image is stored anew.
    pub may_shrink: bool,
    pub started: Timestamp,
    /// Whether the image's number was taken.
    pub begun: bool,
    pub disks: Vec<DraftDisk>,
    /// What is recorded of how it shows one instant.
    pub instant: Option<InstantRecord>,
    /// The checkpoint that this sync saved last.
    pub saved: Option<Manifest>,
    /// A manifest or checkpoint was given its name, or may have been: what it lists must stay.
    pub named: bool,
}

impl Draft {
    /// Which image it will be. Displayed as people will write it: `web01/7`.
    pub fn id(&self) -> ImageId {
        ImageId::new(self.new_layers.chain(), self.sequence, &self.job)
    }

    /// Adds a disk, to be compared with itself in the unfinished sync, or else in the parent image.
    ///
    /// # Errors
    /// `Invalid` for a name that a disk has already and for a size that no disk has; what cannot be read of the disk
    /// that it is compared with; errors of the storage.
    pub fn add(&mut self, meta: DiskMeta) -> Result<DiskId> {
        if self.disks.iter().any(|disk| disk.name() == meta.name) {
            return Err(Error::invalid(format!("disk {} is there already", meta.name)));
        }
        let geometry = Geometry::new(meta.size_bytes, self.new_layers.cluster_size())?;
        let (base, before) = self.base_of(&meta);
        if !self.begun {
            self.begin()?;
        }
        let mut suspects = match &base {
            Some(disk) => self.known.in_disk(disk)?,
            None => Suspects::default(),
        };
        // In a tree that was repaired, the counts were left for the end.
        suspects.counts |= before.as_ref().is_some_and(|before| before.repaired_clusters > 0);
        let tree = base.as_ref().map(|disk| disk.tree().clone());
        let unreadable = self.unreadable_before(&meta.name);
        let due = to_compare_anew(suspects.clusters.clone(), unreadable.as_ref());
        let base = base.map(|disk| Base::new(disk, due));
        let files = self.readers.files();
        let source = Box::new(self.new_layers.clone());
        let builder = Builder::new(geometry, tree, suspects, files, source)?;
        self.disks
            .push(DraftDisk::new(meta, geometry, base, before, unreadable, builder));
        let index = self.disks.len() - 1;
        Ok(self.disks[index].id(index))
    }

    /// What a disk is compared with: itself in the unfinished sync, with its record there, unless it has become smaller
    /// since, or else in the parent image.
    fn base_of(&self, meta: &DiskMeta) -> (Option<Disk>, Option<DiskRecord>) {
        let fits = |disk: &&Disk| disk.size_bytes() <= meta.size_bytes;
        let resumed = self.resumed.as_ref();
        if let Some(disk) = disk_of(resumed, &meta.name).filter(fits) {
            let before = resumed.and_then(|resumed| resumed.manifest().disk(&meta.name));
            return (Some(disk.clone()), before.cloned());
        }
        let parent = disk_of(self.parent.as_ref(), &meta.name);
        let compared = |disk: &&Disk| !self.may_shrink || fits(disk);
        (parent.filter(compared).cloned(), None)
    }

    /// The clusters of a disk that could not be read when the parent image was made, or by the sync that is resumed.
    fn unreadable_before(&self, name: &str) -> Option<ClusterSet> {
        let images = [self.parent.as_ref(), self.resumed.as_ref()];
        let records = images
            .into_iter()
            .flatten()
            .filter_map(|image| image.manifest().disk(name));
        records
            .map(DiskRecord::known_unreadable)
            .try_fold(ClusterSet::default(), |all, known| Some(all.union(&known?)))
    }

    /// Repairs what a crash left, and takes the image's number: raised and durable before it is used.
    fn begin(&mut self) -> Result<()> {
        self.begun = true;
        let repaired = self.store.recover(self.new_layers.chain())?;
        for kept in &repaired.kept {
            tracing::warn!(chain = self.new_layers.chain(), "kept: {kept}");
        }
        self.new_layers.take_sequence(self.sequence)
    }

    /// Begins a pass over a disk.
    ///
    /// # Errors
    /// `Invalid` for an unknown disk, or while another pass over it has not ended; errors of the checkpoint before a
    /// second pass.
    pub fn begin_pass(&mut self, id: DiskId, method: Method, reason: &str) -> Result<()> {
        if self.disk(id)?.was_passed() {
            // What the pass supersedes is freed as what an earlier checkpoint held.
            self.checkpoint()?;
        }
        let image = self.id();
        self.disk(id)?.begin_pass(method, reason, image)
    }

    /// Takes the next cluster that differs.
    ///
    /// # Errors
    /// `Invalid` for an unknown disk, outside a pass, and for a cluster that does not come in order; errors of the
    /// storage.
    pub fn push(&mut self, id: DiskId, update: &ClusterUpdate<'_>) -> Result<()> {
        self.disk(id)?.push(update)
    }

    /// Ends a pass, in which `compared_bytes` were compared.
    ///
    /// # Errors
    /// `Invalid` for an unknown disk, and where no pass has begun; errors of the storage.
    pub fn end_pass(&mut self, id: DiskId, compared_bytes: u64) -> Result<()> {
        self.disk(id)?.end_pass(compared_bytes)?;
        let open = self.disks.iter().filter(|disk| disk.holds_layer()).count();
        if open > OPEN_LAYERS_MAX {
            self.disk(id)?.release()?;
        }
        Ok(())
    }

    /// The image that the bits of a tracker must be relative to, for what they name to be all in which a disk differs
    /// from its base. `None` where no image will do: the disk has no base, or one of another size, or the base is an
    /// unfinished sync of which more is unknown.
    pub fn origin_of(&self, id: DiskId) -> Option<ParentRef> {
        let parent = self.parent.as_ref()?;
        let added = self.disks.get(id.index)?;
        let fits = |disk: &Disk| disk.size_bytes() == id.geometry().size_bytes();
        disk_of(Some(parent), added.name()).filter(|disk| fits(disk))?;
        disk_of(self.resumed.as_ref(), added.name()).map_or(Some(()), |disk| {
            // Beside what came in place of a damaged node, clusters are null that have not come.
            let is_whole = added.repaired_before() == 0;
            (is_whole && fits(disk)).then_some(())
        })?;
        let own = ParentRef {
            sequence: parent.manifest().sequence,
            id: parent.manifest().id,
        };
        self.origin().filter(|origin| *origin == own)
    }

    pub(crate) fn added(&self, id: DiskId) -> Result<&DraftDisk> {
        self.disks
            .get(id.index)
            .ok_or_else(|| Error::invalid("the disk is one of another image"))
    }

    pub(crate) fn disk(&mut self, id: DiskId) -> Result<&mut DraftDisk> {
        self.disks
            .get_mut(id.index)
            .ok_or_else(|| Error::invalid("the disk is one of another image"))
    }

    /// Makes the data of all disks durable, and describes them.
    ///
    /// # Errors
    /// Errors of the storage.
    pub fn finish(&mut self) -> Result<(Vec<DiskRecord>, Vec<LayerRecord>)> {
        let (mut disks, mut layers) = (Vec::new(), Vec::new());
        for mut disk in std::mem::take(&mut self.disks) {
            let (record, of_disk) = disk.finish()?;
            disks.push(record);
            layers.extend(of_disk);
        }
        Ok((disks, layers))
    }

    /// The manifest of this image with these disks and layers.
    ///
    /// # Errors
    /// `Invalid` for a manifest that no reader would accept; `Io` where the kernel gives no random numbers.
    pub fn describe(
        &self,
        disks: Vec<DiskRecord>,
        layers: Vec<LayerRecord>,
        consistency: Consistency,
        consistency_reason: &str,
    ) -> Result<Manifest> {
        let parent = self.origin();
        let manifest = Manifest {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            // A chain that needs one is not written to.
            read_only_compatible: Vec::new(),
            chain: self.new_layers.chain_id(),
            job: self.job.clone(),
            owner: self.new_layers.owner(),
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
            instant: self.instant.clone(),
            cluster_size: self.new_layers.cluster_size().bytes(),
            disks,
            layers,
        };
        manifest.check(self.sequence)?;
        Ok(manifest)
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

fn disk_of<'a>(image: Option<&'a Image>, name: &str) -> Option<&'a Disk> {
    image?.disks().iter().find(|disk| disk.name() == name)
}
