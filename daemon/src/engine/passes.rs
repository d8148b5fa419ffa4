//! A pass over all disks of a job, several at the same time, into the image.

use super::disks::SourceDisk;
use super::error::{Error, ErrorKind, Result, Within};
use super::request::{Job, Observer};
use changetrack::{Pass, Pipeline, PipelineOptions, Plan, Progress, Sink};
use imagefmt::{ClusterUpdate, DiskId, ImageWriter};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Reads all disks and stores what differs from the image that this one is made from, or from the unfinished sync.
///
/// # Errors
/// Name the disk. Asked to stop, it keeps what it has stored for the next sync.
pub(super) fn scan_all<O: Observer>(job: &Job<'_, O>, image: &mut ImageWriter) -> Result<()> {
    let mut ids = Vec::new();
    for disk in job.disks {
        ids.push(image.disk(disk.meta.clone()).within(|| named(disk))?);
    }
    let plans: Vec<Plan> = ids
        .iter()
        .zip(job.disks)
        .map(|(id, disk)| Plan::scan(id.geometry(), has_parent(image, disk)))
        .collect();
    let mut passes = Vec::new();
    for ((&id, plan), disk) in ids.iter().zip(&plans).zip(job.disks) {
        image
            .begin_pass(id, plan.method(), plan.reason())
            .within(|| named(disk))?;
        passes.push(Pass {
            device: &disk.device,
            geometry: id.geometry(),
            plan,
            base: image.base(id).cloned(),
            pace: Some(job.control.pace().clone()),
            progress: Arc::new(Progress::default()),
        });
    }
    let mut pipeline = Pipeline::new(&PipelineOptions {
        compress_level: job.request.compress_level,
        ..PipelineOptions::for_disks(passes.len())
    })?;
    let mut storing = Storing {
        image,
        ids: &ids,
        job,
        passes: &passes,
        shown: passes.iter().map(|_| None).collect(),
        due: Instant::now() + job.request.checkpoint_every,
        deferred: 0,
    };
    let done = pipeline.run(&passes, job.control.stop_flag(), &mut storing);
    drop(storing);
    done.map_err(|error| conclude(error, job.disks, image))
}

/// Whether the disk is compared with the one in the image that this one is made from: one that was larger is not.
fn has_parent(image: &ImageWriter, disk: &SourceDisk) -> bool {
    let known = image
        .parent()
        .and_then(|parent| parent.manifest().disk(&disk.meta.name));
    known.is_some_and(|known| known.size_bytes <= disk.meta.size_bytes)
}

/// Says whose error it is, and keeps what is stored unless it is the store that failed.
fn conclude(error: changetrack::Error, disks: &[SourceDisk], image: &mut ImageWriter) -> Error {
    let disk = error.pass().and_then(|pass| disks.get(pass));
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

fn named(disk: &SourceDisk) -> String {
    format!("sync {} ({})", disk.meta.name, disk.device.path().display())
}

/// Stores what the passes find, and makes a checkpoint of all disks every few seconds: often enough that little is
/// stored twice, seldom enough that nobody notices. One waits for the writes in flight and syncs four files: some 20 ms
/// on the disks we measured.
struct Storing<'a, O: Observer> {
    image: &'a mut ImageWriter,
    ids: &'a [DiskId],
    job: &'a Job<'a, O>,
    passes: &'a [Pass<'a>],
    shown: Vec<Option<O::Shown>>,
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
        let (disk, at) = (&self.job.disks[pass], &self.passes[pass]);
        let shown = self
            .job
            .observer
            .disk(&disk.meta.name, at.geometry.size_bytes(), &at.progress);
        self.shown[pass] = Some(shown);
    }

    fn push(&mut self, pass: usize, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        self.image.push(self.ids[pass], update)
    }

    fn chunk_done(&mut self) -> imagefmt::Result<()> {
        if Instant::now() >= self.due {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn end(&mut self, pass: usize, compared_bytes: u64) -> imagefmt::Result<()> {
        self.shown[pass] = None;
        self.image.end_pass(self.ids[pass], compared_bytes)
    }
}
