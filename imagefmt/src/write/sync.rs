//! Writing one image: from the writer lock to the commit.

use crate::error::{Error, ErrorKind, Result, Within};
use crate::format::geometry::ClusterSize;
use crate::format::id::Uuid;
use crate::format::instant::InstantRecord;
use crate::format::manifest::{Consistency, DiskRecord, Manifest, Method};
use crate::format::name::{ImageId, check_name};
use crate::format::sealed;
use crate::read::image::Image;
use crate::storage::Lock;
use crate::storage::paths::{images_dir, layers_dir, manifest_path};
use crate::store::chain::{self, ChainRecord};
use crate::store::request::WriteRequest;
use crate::store::{Chain, Store};
use crate::write::base::Base;
use crate::write::builder::ClusterUpdate;
use crate::write::disk::{Audited, DiskId, DiskMeta, DraftDisk};
use crate::write::draft::Draft;
use crate::write::known::KnownDamage;
use crate::write::new_layers::NewLayers;
use jiff::Timestamp;
use std::ops::Range;

/// The sync of one image into a chain, as the chain's only writer.
///
/// Disks are added and written in any number of passes and in any order, several of them at the same time, and
/// committed together. A pass pushes clusters in ascending order; those that it does not push stay as they are
/// in [`base`](Self::base), or zero where there is none.
///
/// Dropped without [`commit`](Self::commit), it keeps what its last checkpoint describes and removes the
/// rest: no manifest lists it.
#[derive(Debug)]
pub struct ImageWriter {
    draft: Draft,
    /// The disks of the job.
    of_job: Vec<String>,
    skipped_images: SkippedImages,
    warnings: Vec<String>,
    /// Released last.
    _lock: Lock,
}

impl Store {
    /// Begins an image of `job`, for nobody in particular; see [`begin_write`](Self::begin_write).
    ///
    /// # Errors
    /// As for [`begin_write`](Self::begin_write).
    pub fn begin(
        &self,
        job: &str,
        cluster_size: Option<ClusterSize>,
        disks: &[String],
    ) -> Result<ImageWriter> {
        self.begin_write(&WriteRequest {
            job: job.to_owned(),
            cluster_size,
            disks: disks.to_vec(),
            ..WriteRequest::default()
        })
    }

    /// Begins an image of a job that continues the chain of a finished one, `from`.
    ///
    /// # Errors
    /// As for [`begin_write`](Self::begin_write).
    pub fn take_up(&self, job: &str, from: &str, disks: &[String]) -> Result<ImageWriter> {
        self.begin_write(&WriteRequest {
            job: job.to_owned(),
            take_up: Some(from.to_owned()),
            disks: disks.to_vec(),
            ..WriteRequest::default()
        })
    }

    /// Begins an image: takes the chain's writer lock, creates the chain where there is none, and resumes the
    /// unfinished sync where there is one.
    ///
    /// Before the first [`disk`](ImageWriter::disk), nothing is written to an existing chain; only an unfinished first
    /// sync of other disks or another cluster size is discarded.
    ///
    /// # Errors
    /// `Busy` while another sync writes the chain; `Invalid` when the chain belongs to another owner, or its cluster
    /// size or disks are others; `Damaged` when chain.json is, or when it is missing and every image is damaged.
    pub fn begin_write(&self, request: &WriteRequest) -> Result<ImageWriter> {
        let (chain, job) = (&self.chain_for(request)?, &request.job);
        self.check_store_writable()?;
        let storage = self.storage().clone();
        // A crash may have kept the name of one directory and not that of the other.
        if !self.has_dir(&images_dir(chain))? || !self.has_dir(&layers_dir(chain))? {
            chain::create_dirs(&*storage, chain).within(|| format!("create the chain of job {job}"))?;
        }
        let lock = self.lock_writer(chain, job)?;
        let store = &self.for_writer_of(chain);
        store.check_writable(chain)?;
        let found = ChainRecord::load(store, chain, request).within(|| format!("job {job}"))?;
        let mut record = found.record;
        record.check(request)?;
        if found.unfit {
            tracing::warn!(
                "what an unfinished first sync of job {job} stored, with other disks or another cluster size, is discarded"
            );
            store.discard_checkpoint_of(chain)?;
        }
        record.owner.clone_from(&request.owner);
        ImageWriter::new(store, chain, request, record, lock)
    }

    /// What [`begin_write`](Self::begin_write) would find, without a lock and without writing anything: the image that
    /// the new one would be made from.
    ///
    /// # Errors
    /// As for [`begin_write`](Self::begin_write), without `Busy`.
    pub fn check_write(&self, request: &WriteRequest) -> Result<Option<ImageId>> {
        let chain = self.chain_for(request)?;
        self.check_writable(&chain)?;
        if !self.has_dir(&images_dir(&chain))? {
            return Ok(None);
        }
        let found = ChainRecord::load(self, &chain, request).within(|| format!("job {}", request.job))?;
        found.record.check(request)?;
        let (newest, _) = newest_readable(self, &self.chain(&chain)?)?;
        Ok(newest.map(|image| image.id().clone()))
    }

    /// The chain that the image goes to, after a look at the names in the request.
    fn chain_for(&self, request: &WriteRequest) -> Result<String> {
        let mut names = request.disks.iter();
        names.try_for_each(|name| check_name("disk", name))?;
        match &request.take_up {
            Some(from) => self.chain_to_take_up(request, from),
            None => self.chain_to_write(request),
        }
    }
}

impl ImageWriter {
    fn new(
        store: &Store,
        chain: &str,
        request: &WriteRequest,
        record: ChainRecord,
        lock: Lock,
    ) -> Result<Self> {
        let job = &request.job;
        let readers = store.chain(chain)?;
        let (parent, skipped_images) = newest_readable(store, &readers)?;
        let mut warnings = Vec::new();
        let resumed = store.resumable(&readers, &mut warnings)?;
        let known = KnownDamage::of_chain(store, &readers, &mut warnings)?;
        let (of_job, sequence) = (record.disks.clone(), record.next_sequence);
        let cluster_size = record.cluster_size()?;
        let draft = Draft {
            store: store.clone(),
            readers,
            new_layers: NewLayers::new(store.storage().clone(), chain, cluster_size, record),
            job: job.clone(),
            may_shrink: request.may_shrink,
            sequence,
            parent,
            started: resumed
                .as_ref()
                .map_or_else(Timestamp::now, |resumed| resumed.manifest().started),
            resumed,
            known,
            begun: false,
            disks: Vec::new(),
            instant: None,
            saved: None,
            named: false,
        };
        Ok(Self {
            draft,
            of_job,
            skipped_images,
            warnings,
            _lock: lock,
        })
    }

    /// The image that this one is made from.
    pub fn parent(&self) -> Option<&Image> {
        self.draft.parent.as_ref()
    }

    /// The unfinished sync that this one resumes: what it stored need not be stored again.
    pub fn resumed(&self) -> Option<&Image> {
        self.draft.resumed.as_ref()
    }

    /// Whether the chain has a checkpoint for the next sync to resume from, should this one not end.
    pub fn has_checkpoint(&self) -> bool {
        self.draft.saved.is_some() || self.draft.resumed.is_some()
    }

    /// Newer images that could not be used as the parent, and why.
    pub fn skipped_images(&self) -> &[(u64, Error)] {
        &self.skipped_images
    }

    /// What else of the chain could not be used, and why: a sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Cluster size of the chain.
    pub fn cluster_size(&self) -> ClusterSize {
        self.draft.new_layers.cluster_size()
    }

    /// The number that the image will have.
    pub fn sequence(&self) -> u64 {
        self.draft.sequence
    }

    /// How people will write the image: `web01/7`.
    pub fn label(&self) -> String {
        self.draft.id().to_string()
    }

    /// Adds a disk of the job. With the first one the image's number is taken.
    ///
    /// # Errors
    /// `Invalid` when the disk is not one of the job, was added before, or is smaller than in the parent image;
    /// otherwise when the chain cannot be read or written.
    pub fn disk(&mut self, meta: DiskMeta) -> Result<DiskId> {
        if !self.of_job.contains(&meta.name) {
            return Err(Error::invalid(format!("disk {} does not belong here", meta.name)));
        }
        self.draft.add(meta)
    }

    /// What the current pass is compared with: the disk as built so far. Before a second pass that is the disk
    /// in the unfinished sync, or else in the parent image.
    pub fn base(&self, disk: DiskId) -> Option<&Base> {
        self.draft.disks.get(disk.index)?.base()
    }

    /// Id of the image that a tracker's bits must be relative to, for the clusters that they name to be all in which a
    /// disk may differ from its [`base`](Self::base): the parent image, also when an unfinished sync is resumed that was
    /// made from it. `None` where the whole disk has to be read.
    pub fn tracked_from(&self, disk: DiskId) -> Option<Uuid> {
        self.draft.origin_of(disk).map(|origin| origin.id)
    }

    /// Id of the chain.
    pub fn chain_id(&self) -> Uuid {
        self.draft.new_layers.chain_id()
    }

    /// Clusters that a pass has to read whatever is known of the source, in ascending order: what the disk is built upon
    /// has nothing for them that can be read. These are clusters that are known to be damaged, and those below nodes
    /// that cannot be read. To find the latter, the nodes above `leaves` are read, and all nodes once there is any damage. A
    /// leaf is above 256 clusters. [`commit`](Self::commit) refuses an image without the clusters that are known by then.
    ///
    /// # Errors
    /// When the store cannot be read for another reason than damage.
    pub fn to_store_anew(&self, disk: DiskId, leaves: Range<u64>) -> Result<Vec<Range<u64>>> {
        let found = self.draft.added(disk)?.to_store_anew(leaves)?;
        Ok(found.runs().collect())
    }

    /// Clusters of a disk of which sectors could not be read at the source when they were read last, as ascending ranges;
    /// a tracked pass reads them again. `None` where they are not known, so that the whole disk has to be read.
    pub fn unreadable(&self, disk: DiskId) -> Option<Vec<Range<u64>>> {
        let known = self.draft.disks.get(disk.index)?.unreadable()?;
        Some(known.runs().collect())
    }

    /// Notes what was read of a disk to check the tracker; it was neither part of a pass nor changed the image.
    ///
    /// # Errors
    /// `Invalid` for a disk of another image.
    pub fn note_audit(&mut self, disk: DiskId, audited: Audited) -> Result<()> {
        self.draft.disk(disk)?.note_audit(audited);
        Ok(())
    }

    /// Notes what was done to have all disks at one instant; the last note counts.
    pub fn note_instant(&mut self, instant: InstantRecord) {
        self.draft.instant = Some(instant);
    }

    /// Begins a pass over a disk, which finds changes by `method`, and why that way. The record of the disk
    /// names those of the first pass, or of the last that was not tracked.
    ///
    /// A pass that is not the first of its disk begins with a checkpoint of all disks.
    ///
    /// # Errors
    /// `Invalid` while another pass over the disk has not ended; otherwise as for
    /// [`checkpoint`](Self::checkpoint).
    pub fn begin_pass(&mut self, disk: DiskId, method: Method, reason: &str) -> Result<()> {
        self.draft.begin_pass(disk, method, reason)
    }

    /// Takes the next cluster; indices ascend within a pass. One that is as in the base is not stored again, unless it
    /// cannot be read there: [`Base::digests`] says which those are.
    ///
    /// # Errors
    /// `Invalid` outside of a pass, for a cluster out of order, or one whose stored bytes do not fit; otherwise
    /// when the base cannot be read or the store not be written.
    pub fn push(&mut self, disk: DiskId, update: &ClusterUpdate<'_>) -> Result<()> {
        self.draft.push(disk, update)
    }

    /// Ends a pass that read and compared so many bytes. The record of the disk adds them up.
    ///
    /// # Errors
    /// `Invalid` when no pass has begun; otherwise when the store cannot be written.
    pub fn end_pass(&mut self, disk: DiskId, compared_bytes: u64) -> Result<()> {
        self.draft.end_pass(disk, compared_bytes)
    }

    /// Makes what came so far of all disks durable, so that a later sync resumes from here should this one not
    /// end. Returns whether there is a checkpoint of this sync: not while nothing has come.
    ///
    /// It waits for what is being written, and for a process that frees space in the chain: once in several seconds is
    /// often enough.
    ///
    /// # Errors
    /// When the store cannot be written; the image can then not be continued.
    pub fn checkpoint(&mut self) -> Result<bool> {
        self.draft.checkpoint()
    }

    /// As [`checkpoint`](Self::checkpoint), but makes none where that would wait for a process that frees space in the
    /// chain, and returns who that is: the sync can continue meanwhile.
    ///
    /// # Errors
    /// When the store cannot be written; the image can then not be continued.
    pub fn try_checkpoint(&mut self) -> Result<Option<String>> {
        self.draft.try_checkpoint()
    }

    /// Makes the image exist. When this returns, it survives a power cut.
    ///
    /// # Errors
    /// `Invalid` when a disk of the job is missing or a pass over it has not ended; `Damaged` when what cannot be read
    /// in the base was not pushed; otherwise when the store cannot be written.
    pub fn commit(self, consistency: Consistency, consistency_reason: &str) -> Result<Manifest> {
        self.commit_if(consistency, consistency_reason, &mut |_| Ok(()))
    }

    /// As [`commit`](Self::commit), if `accepts` has nothing against what was written: it gets the records of the disks, in the
    /// order in which they were added.
    ///
    /// # Errors
    /// As for [`commit`](Self::commit), and those of `accepts`.
    pub fn commit_if(
        mut self,
        consistency: Consistency,
        consistency_reason: &str,
        accepts: &mut dyn FnMut(&[DiskRecord]) -> Result<()>,
    ) -> Result<Manifest> {
        let draft = &mut self.draft;
        if draft.disks.len() != self.of_job.len() {
            return Err(Error::invalid("not every disk of the job was written"));
        }
        draft.disks.iter().try_for_each(DraftDisk::check_whole)?;
        let (disks, layers) = draft.finish()?;
        accepts(&disks)?;
        let manifest = draft.describe(disks, layers, consistency, consistency_reason)?;
        let (chain, storage) = (draft.new_layers.chain(), draft.new_layers.storage());
        // The layers' data is durable since each disk was finished; now their names.
        storage.sync_dir(&layers_dir(chain))?;
        let path = manifest_path(chain, draft.sequence);
        let temporary = sealed::write_temporary(storage, &path, &manifest)?;
        let _reclaim = draft.store.lock_reclaim(chain)?;
        // From here on the manifest may exist even if an error is reported.
        draft.named = true;
        sealed::put_in_place(storage, &images_dir(chain), &temporary, &path)
            .within(|| format!("commit image {}", draft.id()))?;
        draft.forget_checkpoints();
        Ok(manifest)
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        if !self.draft.named && self.draft.begun {
            self.draft.give_up();
        }
    }
}

/// Images that could not be opened, by number, and why.
type SkippedImages = Vec<(u64, Error)>;

/// The newest image that can be opened, and the newer ones that cannot.
fn newest_readable(store: &Store, chain: &Chain) -> Result<(Option<Image>, SkippedImages)> {
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
