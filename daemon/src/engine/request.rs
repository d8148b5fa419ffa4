//! What a sync is asked for, who follows it, and what its steps share.

use super::DiskArg;
use super::control::Control;
use super::destination::Destination;
use super::disks::SourceDisk;
use super::exclusive::Exclusive;
use api::{OnReadError, Phase};
use changetrack::Progress;
use imagefmt::{ClusterSize, Owner, TakeOver, WriteRequest};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What to sync, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// The job: its images are JOB/1 and so on.
    pub job: String,
    /// The job whose chain this one continues.
    pub take_up: Option<String>,
    /// The disks.
    pub disks: Vec<DiskArg>,
    /// For a new chain; the chain's own otherwise.
    pub cluster_size: Option<ClusterSize>,
    /// zstd level; 0 stores everything raw.
    pub compress_level: i32,
    /// How often what is stored is made durable.
    pub checkpoint_every: Duration,
    /// Sync a disk although it is not the one that the job knows.
    pub accept_changed_disk: bool,
    /// Whose the chain is to be.
    pub owner: Option<Owner>,
    /// Whose chain it may have been.
    pub take_over: TakeOver,
    /// How the tracker is used.
    pub tracker: UseTracker,
    /// What becomes of sectors that cannot be read.
    pub on_read_error: OnReadError,
    /// How long writers may be held so that the image has all disks at one instant; not at all if absent.
    pub freeze: Option<Duration>,
    /// The disks are not in use: they are held exclusively, and the image is `offline` unless somebody writes to them all the same.
    pub offline: bool,
    /// Everything is compared after the sync, by reading the disks and the image.
    pub verify: bool,
}

/// How a sync uses the tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UseTracker {
    /// Which disks are watched.
    pub mode: TrackMode,
    /// Where in bpffs it is pinned.
    pub directory: PathBuf,
    /// Whether a disk that is compared with an image may be read completely. If not, a sync that would have to do so fails with
    /// `Untracked` before it reads anything.
    pub may_scan: bool,
}

/// Which disks of a sync are watched by the tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackMode {
    /// None: every disk is read completely.
    Off,
    /// Those that are watched already, for the images that this one is made from.
    IfWatched,
    /// All that can be; the watch begins before the first read.
    Start,
}

impl Request {
    /// An image of disks with these names to be begun.
    pub fn to_write(&self, disks: Vec<String>) -> WriteRequest {
        WriteRequest {
            job: self.job.clone(),
            take_up: self.take_up.clone(),
            cluster_size: self.cluster_size,
            disks,
            owner: self.owner.clone(),
            take_over: self.take_over.clone(),
            may_shrink: self.accept_changed_disk,
        }
    }

    /// Names of jobs of whose chain the images become a part: that of the first which the store has.
    pub fn chain_jobs(&self) -> Vec<&str> {
        let own = std::iter::once(self.job.as_str());
        own.chain(self.take_up.as_deref()).collect()
    }
}

/// What is known of an image when its sync begins.
#[derive(Debug, Clone)]
pub struct ImageBegun {
    /// Its number in the chain.
    pub sequence: u64,
    /// How people will write it: `web01/7`.
    pub label: String,
    /// Bytes of all disks.
    pub total_bytes: u64,
    /// Bytes that an unfinished sync has stored of it; absent where none is resumed.
    pub resumed_bytes: Option<u64>,
}

/// Gets notified of what a sync does, on the thread that runs it.
pub trait Observer {
    /// What lives as long as a disk is read, a progress bar for one. Several disks are read at the same time.
    type Shown;

    /// A phase begins.
    fn phase(&self, phase: Phase);

    /// The image has its number.
    fn image(&self, image: &ImageBegun);

    /// So many bytes are to be read in all, as far as is known by now.
    fn planned(&self, _total_bytes: u64) {}

    /// The sync begins to read so many bytes of a disk. `progress` counts from now on.
    fn disk(&self, name: &str, planned_bytes: u64, progress: &Arc<Progress>) -> Self::Shown;

    /// Another process holds up the sync, or its checkpoints: `by` says which one, and what for. `None` when that is over.
    fn held_up(&self, by: Option<&str>);

    /// An audit has found that the tracker of a disk had missed writes.
    fn tracker_missed(&self) {}

    /// A warning for the user; the sync continues.
    fn warn(&self, text: &str);

    /// The filesystems on all disks are about to be frozen, as soon as this returns: for programs that want to write first.
    ///
    /// # Errors
    /// Why nothing is to be frozen, as a part of a sentence; the image is then made without. [`after_thaw`](Self::after_thaw)
    /// follows all the same.
    fn before_freeze(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    /// Nothing is frozen any more, or nothing was. It is called once after each [`before_freeze`](Self::before_freeze), before
    /// anything that was read is stored.
    fn after_thaw(&self) {}
}

/// What all steps of one sync share.
pub(super) struct Job<'a, O> {
    pub destination: Destination<'a>,
    pub request: &'a Request,
    pub disks: &'a [SourceDisk],
    pub control: &'a Control,
    pub observer: &'a O,
    /// Where nobody else may use the disks.
    pub exclusive: Option<Exclusive>,
    /// When the sync began.
    pub begun: Instant,
}
