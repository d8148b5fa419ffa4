//! What a sync needs of whatever it writes its image to: a store of this machine, or one that another machine has.

use crate::error::Result;
use crate::format::geometry::ClusterSize;
use crate::format::id::Uuid;
use crate::format::instant::InstantRecord;
use crate::format::manifest::{Consistency, Manifest, Method};
use crate::read::image::Image;
use crate::write::base::Base;
use crate::write::builder::ClusterUpdate;
use crate::write::disk::{Audited, DiskId, DiskMeta};
use crate::write::sync::ImageWriter;
use std::fmt;
use std::ops::Range;

/// An image being written. [`ImageWriter`] writes one into a store of this machine, and has the same methods; its documentation
/// says what they do.
pub trait WriteImage: fmt::Debug {
    /// Record of the image that this one is made from. One that another machine has comes without its layers.
    fn parent(&self) -> Option<&Manifest>;
    /// Record of the unfinished sync that this one resumes.
    fn resumed(&self) -> Option<&Manifest>;
    /// The disk of this name in the parent image, or else in the unfinished sync.
    fn known_disk(&self, name: &str) -> Option<Base>;
    /// Whether there is something for the next sync to resume, should this one not end.
    fn has_checkpoint(&self) -> bool;
    /// Newer images that could not be used as the parent, and why.
    fn skipped_images(&self) -> Vec<(u64, String)>;
    /// What else could not be used, and why: a sentence each.
    fn warnings(&self) -> Vec<String>;
    /// Cluster size of the chain.
    fn cluster_size(&self) -> ClusterSize;
    /// The number that the image will have.
    fn sequence(&self) -> u64;
    /// How people will write the image: `web01/7`.
    fn label(&self) -> String;
    /// Id of the chain.
    fn chain_id(&self) -> Uuid;
    /// Adds a disk.
    ///
    /// # Errors
    /// As [`ImageWriter::disk`].
    fn disk(&mut self, meta: DiskMeta) -> Result<DiskId>;
    /// What the current pass is compared with.
    fn base(&self, disk: DiskId) -> Option<Base>;
    /// Id of the image that a tracker's bits must be relative to.
    fn tracked_from(&self, disk: DiskId) -> Option<Uuid>;
    /// Clusters that a pass has to read whatever is known of the source.
    ///
    /// # Errors
    /// As [`ImageWriter::to_store_anew`].
    fn to_store_anew(&self, disk: DiskId, leaves: Range<u64>) -> Result<Vec<Range<u64>>>;
    /// Clusters of which sectors could not be read at the source; `None` where they are not known.
    ///
    /// # Errors
    /// When the machine that has the store cannot be reached.
    fn unreadable(&self, disk: DiskId) -> Result<Option<Vec<Range<u64>>>>;
    /// Notes what was read of a disk to check the tracker.
    ///
    /// # Errors
    /// As [`ImageWriter::note_audit`].
    fn note_audit(&mut self, disk: DiskId, audited: Audited) -> Result<()>;
    /// Notes what was done to have all disks at one instant.
    ///
    /// # Errors
    /// When the machine that has the store cannot be reached.
    fn note_instant(&mut self, instant: InstantRecord) -> Result<()>;
    /// Begins a pass over a disk.
    ///
    /// # Errors
    /// As [`ImageWriter::begin_pass`].
    fn begin_pass(&mut self, disk: DiskId, method: Method, reason: &str) -> Result<()>;
    /// Takes the next cluster.
    ///
    /// # Errors
    /// As [`ImageWriter::push`].
    fn push(&mut self, disk: DiskId, update: &ClusterUpdate<'_>) -> Result<()>;
    /// Ends a pass.
    ///
    /// # Errors
    /// As [`ImageWriter::end_pass`].
    fn end_pass(&mut self, disk: DiskId, compared_bytes: u64) -> Result<()>;
    /// Makes what came so far durable.
    ///
    /// # Errors
    /// As [`ImageWriter::checkpoint`].
    fn checkpoint(&mut self) -> Result<bool>;
    /// The same, but defers it where it would wait, and returns for whom.
    ///
    /// # Errors
    /// As [`ImageWriter::try_checkpoint`].
    fn try_checkpoint(&mut self) -> Result<Option<String>>;
    /// Makes the image exist.
    ///
    /// # Errors
    /// As [`ImageWriter::commit`].
    fn commit(self: Box<Self>, consistency: Consistency, consistency_reason: &str) -> Result<Manifest>;
}

impl WriteImage for ImageWriter {
    fn parent(&self) -> Option<&Manifest> {
        self.parent().map(Image::manifest)
    }

    fn resumed(&self) -> Option<&Manifest> {
        self.resumed().map(Image::manifest)
    }

    fn known_disk(&self, name: &str) -> Option<Base> {
        let known = self.parent().or_else(|| self.resumed())?;
        let disk = known.disks().iter().find(|disk| disk.name() == name)?;
        Some(Base::from(disk.clone()))
    }

    fn has_checkpoint(&self) -> bool {
        self.has_checkpoint()
    }

    fn skipped_images(&self) -> Vec<(u64, String)> {
        let skipped = self.skipped_images().iter();
        skipped
            .map(|(sequence, error)| (*sequence, error.to_string()))
            .collect()
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings().to_vec()
    }

    fn cluster_size(&self) -> ClusterSize {
        self.cluster_size()
    }

    fn sequence(&self) -> u64 {
        self.sequence()
    }

    fn label(&self) -> String {
        self.label()
    }

    fn chain_id(&self) -> Uuid {
        self.chain_id()
    }

    fn disk(&mut self, meta: DiskMeta) -> Result<DiskId> {
        self.disk(meta)
    }

    fn base(&self, disk: DiskId) -> Option<Base> {
        self.base(disk).cloned()
    }

    fn tracked_from(&self, disk: DiskId) -> Option<Uuid> {
        self.tracked_from(disk)
    }

    fn to_store_anew(&self, disk: DiskId, leaves: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.to_store_anew(disk, leaves)
    }

    fn unreadable(&self, disk: DiskId) -> Result<Option<Vec<Range<u64>>>> {
        Ok(self.unreadable(disk))
    }

    fn note_audit(&mut self, disk: DiskId, audited: Audited) -> Result<()> {
        self.note_audit(disk, audited)
    }

    fn note_instant(&mut self, instant: InstantRecord) -> Result<()> {
        self.note_instant(instant);
        Ok(())
    }

    fn begin_pass(&mut self, disk: DiskId, method: Method, reason: &str) -> Result<()> {
        self.begin_pass(disk, method, reason)
    }

    fn push(&mut self, disk: DiskId, update: &ClusterUpdate<'_>) -> Result<()> {
        self.push(disk, update)
    }

    fn end_pass(&mut self, disk: DiskId, compared_bytes: u64) -> Result<()> {
        self.end_pass(disk, compared_bytes)
    }

    fn checkpoint(&mut self) -> Result<bool> {
        self.checkpoint()
    }

    fn try_checkpoint(&mut self) -> Result<Option<String>> {
        self.try_checkpoint()
    }

    fn commit(self: Box<Self>, consistency: Consistency, consistency_reason: &str) -> Result<Manifest> {
        (*self).commit(consistency, consistency_reason)
    }
}
