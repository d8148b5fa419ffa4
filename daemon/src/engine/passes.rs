//! The passes over all disks of a job, several disks at the same time, into the image.

use super::disks::SourceDisk;
use super::error::{Error, ErrorKind, Result, Within};
use super::identity;
use super::request::{Job, Observer};
use super::salvage::Unread;
use super::tracked::Trackings;
use api::OnReadError;
use changetrack::{Pass, Pipeline, PipelineOptions, Plan, Progress, Sink};
use imagefmt::{Audited, Base, ClusterUpdate, DiskId, Method, PassRecord, WriteImage};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Leaves of what a disk is built upon that are read to find damage, beside those that change: 16 GiB of a disk with
/// clusters of 64 KiB. The next sync looks at those that follow.
const LEAVES_LOOKED_AT: u64 = 1024;

/// How often clusters are read again of which something turned out to be damaged meanwhile.
const REPAIRS_MAX: u32 = 3;

/// Reads all disks and stores what differs from the image that this one is made from, or from the unfinished sync. A
/// disk for which the tracker vouches is read in part.
///
/// # Errors
/// Name the disk. Asked to stop, it keeps what it has stored for the next sync.
pub(super) fn read_all<O: Observer>(
    job: &Job<'_, O>,
    image: &mut dyn WriteImage,
    ids: &[DiskId],
    trackings: &mut Trackings,
    first_flush: Duration,
) -> Result<WasRead> {
    let mut reading = Reading {
        job,
        image,
        ids,
        trackings,
        pipeline: None,
        is_tracked: vec![false; ids.len()],
        read_bytes: vec![0; ids.len()],
        planned_bytes: 0,
        dirty_bytes: 0,
        audit_took: Duration::ZERO,
    };
    reading.first()?;
    let first = PassRecord {
        bytes: reading.planned_bytes,
        dirty_bytes: reading.dirty_bytes,
        flush_ms: milliseconds(first_flush),
    };
    reading.keep_audit_positions()?;
    reading.audit()?;
    reading.repair()?;
    let mut instant = reading.instant(first)?;
    // An instant that was reached has asked the tracker after the last read.
    let has_reached = instant.as_ref().is_some_and(|instant| instant.reached.is_ok());
    let is_repaired = reading.repair()?;
    let is_asked = has_reached && !is_repaired;
    let is_more_read = is_repaired | (!is_asked && reading.scan_where_doubted()?);
    if let Some(instant) = instant
        .as_mut()
        .filter(|instant| is_more_read && instant.reached.is_ok())
    {
        instant.reached = Err("more had to be read after the filesystems were thawed".to_owned());
    }
    if let Some(instant) = &instant {
        reading.image.note_instant(instant.record.clone())?;
    }
    Ok(WasRead {
        instant: instant.map(|instant| instant.reached),
        bytes: reading.read_bytes,
        audit_took: reading.audit_took,
    })
}

/// What all passes of a sync came to.
#[derive(Debug)]
pub(super) struct WasRead {
    /// Bytes of each disk, the audited ones too.
    pub bytes: Vec<u64>,
    /// How the image shows all disks at one instant, or why it does not; absent where that was not wanted.
    pub instant: Option<std::result::Result<String, String>>,
    /// How long the audit took.
    pub audit_took: Duration,
}

/// Adds all disks of a job to an image.
///
/// # Errors
/// Name the disk.
pub(super) fn add_disks(image: &mut dyn WriteImage, disks: &[SourceDisk]) -> Result<Vec<DiskId>> {
    let add = |disk: &SourceDisk| image.disk(disk.meta.clone()).within(|| named(disk));
    disks.iter().map(add).collect()
}

/// Refuses a sync that would read a disk completely although an image has it.
///
/// # Errors
/// `Untracked`, with the disk and the reason.
pub(super) fn refuse_scans<O: Observer>(
    job: &Job<'_, O>,
    image: &dyn WriteImage,
    trackings: &Trackings,
) -> Result<()> {
    for (place, disk) in job.disks.iter().enumerate() {
        if let (true, Err(doubt)) = (has_parent(image, disk), trackings.vouching(place)) {
            let what = format!("{} would have to be read completely: {doubt}", disk.meta.name);
            return Err(Error::untracked(what));
        }
    }
    Ok(())
}

/// A pass to be made over a disk of the job, by its place.
pub(super) type Planned = (usize, Plan);

/// Why clusters are read that have not changed.
pub(super) const DAMAGED: &str = "what was stored of it before is damaged";

/// All passes of one sync.
pub(super) struct Reading<'a, 'j, O: Observer> {
    pub job: &'a Job<'j, O>,
    pub image: &'a mut dyn WriteImage,
    pub ids: &'a [DiskId],
    pub trackings: &'a mut Trackings,
    /// Made when a pass needs it.
    pub pipeline: Option<Pipeline>,
    /// Whether the first pass over a disk was one of what the tracker named.
    is_tracked: Vec<bool>,
    /// Bytes read of each disk.
    pub read_bytes: Vec<u64>,
    /// Bytes of all passes so far.
    pub planned_bytes: u64,
    /// Bytes among them in clusters that were stored.
    pub dirty_bytes: u64,
    pub audit_took: Duration,
}

impl<O: Observer> Reading<'_, '_, O> {
    /// The pass that all disks have: of what the tracker names where it vouches for the rest, of everything elsewhere.
    fn first(&mut self) -> Result<()> {
        let plans = (0..self.ids.len()).map(|disk| Ok((disk, self.plan(disk)?)));
        let plans = plans.collect::<Result<Vec<Planned>>>()?;
        for (disk, plan) in &plans {
            self.is_tracked[*disk] = plan.method() == Method::Tracked;
        }
        self.pass(&plans)
    }

    fn plan(&self, disk: usize) -> Result<Plan> {
        let (id, source) = (self.ids[disk], &self.job.disks[disk]);
        let geometry = id.geometry();
        if !has_parent(self.image, source) {
            return Ok(Plan::scan(geometry, false));
        }
        let tracking = match self.trackings.vouching(disk) {
            Ok(tracking) => tracking,
            Err(doubt) => return Ok(Plan::scan(geometry, true).because(doubt)),
        };
        let windows = geometry.leaf_count().div_ceil(LEAVES_LOOKED_AT).max(1);
        let first = self.image.sequence() % windows * LEAVES_LOOKED_AT;
        let anew = self.image.to_store_anew(id, first..first + LEAVES_LOOKED_AT);
        let anew = anew.within(|| named(source))?;
        let parent = self.image.parent().map(identity::label);
        let reason = format!(
            "the tracker has seen every write since {}",
            parent.unwrap_or_default()
        );
        let Some(unreadable) = self.image.unreadable(id).within(|| named(source))? else {
            let why = "more places of it could not be read before than an image can list";
            return Ok(Plan::scan(geometry, true).because(why));
        };
        let anew = [anew, unreadable].concat();
        let changed = tracking.dirty().ranges(0);
        Ok(Plan::tracked(geometry, &changed, &anew, &reason))
    }

    /// Reads what turned out to be damaged in the store while the first pass built upon it. Returns whether it read anything.
    fn repair(&mut self) -> Result<bool> {
        let mut has_read = false;
        for _ in 0..REPAIRS_MAX {
            let mut plans = Vec::new();
            for disk in self.tracked() {
                let id = self.ids[disk];
                let due = self.image.to_store_anew(id, 0..0);
                let due = due.within(|| named(&self.job.disks[disk]))?;
                if !due.is_empty() {
                    plans.push((
                        disk,
                        Plan::tracked(id.geometry(), &std::iter::empty(), &due, DAMAGED),
                    ));
                }
            }
            if plans.is_empty() {
                break;
            }
            self.pass(&plans)?;
            has_read = true;
        }
        Ok(has_read)
    }

    /// Reads disks completely of which the tracker turns out not to be right. Returns whether it read any.
    fn scan_where_doubted(&mut self) -> Result<bool> {
        let mut plans = Vec::new();
        for disk in self.tracked() {
            let doubt = match self.trackings.vouching(disk) {
                Ok(tracking) => tracking.still_trusted().err().map(|doubt| doubt.to_string()),
                Err(doubt) => Some(doubt.to_owned()),
            };
            if let Some(doubt) = doubt {
                let geometry = self.ids[disk].geometry();
                plans.push((disk, Plan::scan(geometry, true).because(&doubt)));
                self.trackings.doubt(disk, doubt);
            }
        }
        self.pass(&plans)?;
        Ok(!plans.is_empty())
    }

    /// The disks whose first pass was one of what the tracker named.
    pub fn tracked(&self) -> Vec<usize> {
        (0..self.ids.len())
            .filter(|&disk| self.is_tracked[disk])
            .collect()
    }

    /// Makes passes, and counts what they read. What cannot be read is read once more at the end, if it is to be skipped.
    pub fn pass(&mut self, plans: &[Planned]) -> Result<()> {
        let left = self.storing_pass(plans, self.manner())?;
        if left.is_empty() {
            return Ok(());
        }
        self.salvage(&left)
    }

    /// What passes do at first where a disk cannot be read.
    fn manner(&self) -> blockio::OnReadError {
        match self.job.request.on_read_error {
            OnReadError::Stop => blockio::OnReadError::Fail,
            OnReadError::Skip => blockio::OnReadError::Defer,
        }
    }

    /// Makes passes that store what differs. Returns what could not be read.
    pub fn storing_pass(&mut self, plans: &[Planned], manner: blockio::OnReadError) -> Result<Unread> {
        if plans.is_empty() {
            return Ok(Unread::default());
        }
        for (disk, plan) in plans {
            self.image
                .begin_pass(self.ids[*disk], plan.method(), plan.reason())
                .within(|| named(&self.job.disks[*disk]))?;
            self.read_bytes[*disk] += plan.bytes();
            self.planned_bytes += plan.bytes();
        }
        self.job.observer.planned(self.planned_bytes);
        let passes = self.to_passes(plans, manner);
        let mut pipeline = self.take_pipeline()?;
        let mut storing = Storing {
            image: self.image,
            ids: self.ids,
            job: self.job,
            passes: &passes,
            plans,
            shown: passes.iter().map(|_| None).collect(),
            unread: Unread::default(),
            due: Instant::now() + self.job.request.checkpoint_every,
            deferred: 0,
        };
        let done = pipeline.run(&passes, self.job.control.stop_flag(), &mut storing);
        let unread = std::mem::take(&mut storing.unread);
        drop(storing);
        self.pipeline = Some(pipeline);
        let dirty = passes
            .iter()
            .map(|pass| pass.progress.dirty_bytes.load(Ordering::Relaxed));
        self.dirty_bytes += dirty.sum::<u64>();
        done.map_err(|error| self.conclude(error, plans))?;
        Ok(unread)
    }

    /// Reads and compares for `sink`, which stores nothing.
    pub fn run(&mut self, plans: &[Planned], sink: &mut dyn Sink) -> Result<()> {
        let passes = self.to_passes(plans, self.manner());
        let mut pipeline = self.take_pipeline()?;
        let done = pipeline.run(&passes, self.job.control.stop_flag(), sink);
        self.pipeline = Some(pipeline);
        done.map_err(|error| self.conclude(error, plans))
    }

    fn take_pipeline(&mut self) -> Result<Pipeline> {
        if let Some(pipeline) = self.pipeline.take() {
            return Ok(pipeline);
        }
        let options = PipelineOptions {
            compress_level: self.job.request.compress_level,
            ..PipelineOptions::for_disks(self.ids.len())
        };
        Ok(Pipeline::new(&options)?)
    }

    fn to_passes<'p>(&self, plans: &'p [Planned], on_read_error: blockio::OnReadError) -> Vec<Pass<'p>>
    where
        Self: 'p,
    {
        let pass = |(disk, plan): &'p Planned| {
            let id = self.ids[*disk];
            Pass {
                device: &self.job.disks[*disk].device,
                geometry: id.geometry(),
                plan,
                base: self.expecting(id, plan),
                pace: Some(self.job.control.pace().clone()),
                on_read_error,
                progress: Arc::new(Progress::default()),
            }
        };
        plans.iter().map(pass).collect()
    }

    /// What a disk is compared with, prepared for what a plan reads.
    fn expecting(&self, id: DiskId, plan: &Plan) -> Option<Base> {
        let (base, geometry) = (self.image.base(id)?, id.geometry());
        let clusters = |bytes: Range<u64>| {
            geometry.cluster_at(bytes.start)..geometry.cluster_at(bytes.end.saturating_sub(1)) + 1
        };
        base.expect(&mut plan.ranges().iter().map(clusters));
        Some(base)
    }

    fn conclude(&mut self, error: changetrack::Error, plans: &[Planned]) -> Error {
        let pass = error.pass().and_then(|pass| plans.get(pass));
        conclude(error, pass.map(|(disk, _)| &self.job.disks[*disk]), self.image)
    }

    /// Where the audit of a disk had come to before this sync.
    pub fn audit_position(&self, disk: usize) -> u64 {
        let parent = self.image.parent();
        let before = parent.and_then(|parent| parent.disk(&self.job.disks[disk].meta.name));
        before.map_or(0, |before| before.audit_position)
    }

    /// Audits continue where they were when disks are scanned in between.
    fn keep_audit_positions(&mut self) -> Result<()> {
        for (disk, &id) in self.ids.iter().enumerate() {
            let position = self.audit_position(disk);
            self.image.note_audit(id, Audited { bytes: 0, position })?;
        }
        Ok(())
    }
}

/// As the records of passes have it.
pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the disk is compared with the one in the image that this one is made from: one that was larger is not.
fn has_parent(image: &dyn WriteImage, disk: &SourceDisk) -> bool {
    let known = image.parent().and_then(|parent| parent.disk(&disk.meta.name));
    known.is_some_and(|known| known.size_bytes <= disk.meta.size_bytes)
}

/// Says whose error it is, and keeps what is stored unless it is the store that failed.
fn conclude(error: changetrack::Error, disk: Option<&SourceDisk>, image: &mut dyn WriteImage) -> Error {
    let error = Error::from(error);
    let kept = match error.kind() {
        ErrorKind::Stopped | ErrorKind::Device => image.checkpoint().map(drop),
        _ => Ok(()),
    };
    let error = match kept {
        Ok(()) => error,
        Err(failed) if error.kind() == ErrorKind::Stopped => {
            return Error::from(failed).within("write a checkpoint of what is already stored");
        }
        Err(failed) => {
            tracing::warn!("what is already stored is not kept: {}", failed.full_message());
            error
        }
    };
    match disk {
        Some(disk) => error.within(named(disk)),
        None => error,
    }
}

pub(super) fn named(disk: &SourceDisk) -> String {
    format!("sync {} ({})", disk.meta.name, disk.device.path().display())
}

/// Stores what the passes find, and makes a checkpoint of all disks every few seconds: often enough that little is
/// stored twice, seldom enough that nobody notices. One waits for the writes in flight and syncs four files: some 20 ms
/// on the disks we measured.
struct Storing<'a, O: Observer> {
    image: &'a mut dyn WriteImage,
    ids: &'a [DiskId],
    job: &'a Job<'a, O>,
    passes: &'a [Pass<'a>],
    plans: &'a [Planned],
    shown: Vec<Option<O::Shown>>,
    unread: Unread,
    /// When the next checkpoint is due.
    due: Instant,
    /// How often in a row it was deferred.
    deferred: u32,
}

/// How long a checkpoint is deferred that another process is in the way of.
const DEFER: Duration = Duration::from_secs(1);

impl<O: Observer> Storing<'_, O> {
    fn every(&self) -> Duration {
        self.job.request.checkpoint_every
    }

    /// Makes a checkpoint, unless that would wait for another process that frees space in the chain. The sync continues
    /// without one then: only more would be stored again if it were interrupted.
    fn checkpoint(&mut self) -> imagefmt::Result<()> {
        if let Some(by) = self.image.try_checkpoint()? {
            self.due = Instant::now() + DEFER;
            self.deferred = self.deferred.saturating_add(1);
            // A process that is just deleting an image is gone the next time.
            if self.deferred == 2 {
                self.job.observer.held_up(Some(&format!(
                    "no checkpoint can be written until {by} has finished"
                )));
            }
            return Ok(());
        }
        self.due = Instant::now() + self.every();
        if std::mem::take(&mut self.deferred) >= 2 {
            self.job.observer.held_up(None);
        }
        Ok(())
    }
}

impl<O: Observer> Sink for Storing<'_, O> {
    fn begin(&mut self, pass: usize) {
        let (disk, at) = (&self.job.disks[self.plans[pass].0], &self.passes[pass]);
        let shown = self
            .job
            .observer
            .disk(&disk.meta.name, at.plan.bytes(), &at.progress);
        self.shown[pass] = Some(shown);
    }

    fn push(&mut self, pass: usize, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        self.image.push(self.ids[self.plans[pass].0], update)
    }

    fn unread(&mut self, pass: usize, bytes: Range<u64>) {
        self.unread.entry(self.plans[pass].0).or_default().push(bytes);
    }

    fn chunk_done(&mut self) -> imagefmt::Result<()> {
        if Instant::now() >= self.due {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn end(&mut self, pass: usize, compared_bytes: u64) -> imagefmt::Result<()> {
        self.shown[pass] = None;
        self.image.end_pass(self.ids[self.plans[pass].0], compared_bytes)
    }
}
