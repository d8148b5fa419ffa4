//! A sync: all disks of a job into one image.

use super::DiskArg;
use super::activity::Watch;
use super::checkpoints::Checkpointed;
use super::control::Control;
use super::disks::{self, SourceDisk};
use anyhow::{Context, Result, bail};
use api::Phase;
use changetrack::{Progress, ScanOptions, scan};
use imagefmt::{ClusterSize, Comparison, ImageWriter, Manifest, Method, Store};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What to sync, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// Directory of the store.
    pub store: PathBuf,
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
    /// Go on although a disk is not the one that the job knows.
    pub accept_changed_disk: bool,
}

/// Is told what a sync does, on the thread that runs it.
pub trait Observer {
    /// What lives as long as a disk is read, a progress bar for one.
    type Shown;

    /// Another phase begins.
    fn phase(&self, phase: Phase);

    /// The image has its name. `resumed_bytes` are what an unfinished sync had stored of it.
    fn image(&self, label: &str, total_bytes: u64, resumed_bytes: Option<u64>);

    /// A disk is read from here on.
    fn disk(&self, name: &str, size_bytes: u64, progress: &Arc<Progress>) -> Self::Shown;

    /// Something the user should know that does not end the sync.
    fn warn(&self, text: &str);
}

/// A sync that made an image.
#[derive(Debug)]
pub struct Synced {
    /// The image's manifest.
    pub manifest: Manifest,
    /// Whether it went on with one that was not finished.
    pub resumed: bool,
}

/// Makes an image. What an unfinished sync stored is gone on with, and dropped if it turns out to be damaged.
///
/// # Errors
/// Say what of the sync is kept. One that was stopped is told by [`is_canceled`], damage by [`is_damage`].
pub fn run<O: Observer>(
    store: &Store,
    request: &Request,
    disks: &[SourceDisk],
    control: &Control,
    observer: &O,
) -> Result<Synced> {
    let job = Job {
        store,
        request,
        disks,
        control,
        observer,
    };
    let image = job.begin()?;
    let resumed = image.resumed().map(|unfinished| unfinished.chain().to_owned());
    match (job.make_image(image), resumed) {
        (Err(error), Some(chain)) if is_damage(&error) => {
            observer.warn(&format!(
                "what the unfinished sync stored is damaged; starting afresh: {error:#}"
            ));
            store.discard_checkpoint(&chain)?;
            let manifest = job.make_image(job.begin()?)?;
            Ok(Synced {
                manifest,
                resumed: false,
            })
        }
        (made, resumed) => made.map(|manifest| Synced {
            manifest,
            resumed: resumed.is_some(),
        }),
    }
}

/// Whether a sync failed because it was asked to stop.
pub fn is_canceled(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let scan = cause.downcast_ref::<changetrack::Error>();
        cause.is::<Stopped>() || scan.is_some_and(|error| error.kind() == changetrack::ErrorKind::Canceled)
    })
}

/// Whether a sync failed because an image of the store is damaged.
pub fn is_damage(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<imagefmt::Error>())
        .any(|cause| cause.kind() == imagefmt::ErrorKind::Damaged)
}

/// Whether a sync failed because somebody else holds the chain. Nothing has been written then.
pub fn is_busy(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<imagefmt::Error>())
        .any(|cause| cause.kind() == imagefmt::ErrorKind::Busy)
}

/// A sync that was stopped between two disks.
#[derive(Debug)]
struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the sync was stopped")
    }
}

impl std::error::Error for Stopped {}

/// What all steps of one sync share.
struct Job<'a, O> {
    store: &'a Store,
    request: &'a Request,
    disks: &'a [SourceDisk],
    control: &'a Control,
    observer: &'a O,
}

impl<O: Observer> Job<'_, O> {
    /// Becomes the job's writer and refuses what does not fit the job, before anything is written.
    fn begin(&self) -> Result<ImageWriter> {
        let request = self.request;
        let names: Vec<String> = self.disks.iter().map(|disk| disk.meta.name.clone()).collect();
        let image = match &request.take_up {
            Some(from) => self.store.take_up(&request.job, from, &names)?,
            None => self.store.begin(&request.job, request.cluster_size, &names)?,
        };
        for (sequence, error) in image.skipped_images() {
            self.observer.warn(&format!(
                "image {}/{sequence} is damaged; comparing with an earlier one: {error}",
                request.job
            ));
        }
        for known in image.parent().into_iter().chain(image.resumed()) {
            disks::check_against(known, self.disks, request.accept_changed_disk)?;
        }
        let total = self.disks.iter().map(|disk| disk.meta.size_bytes).sum();
        let stored = |unfinished: &imagefmt::Image| {
            let disks = &unfinished.manifest().disks;
            disks.iter().map(|disk| disk.stored_bytes).sum()
        };
        self.observer
            .image(&image.label(), total, image.resumed().map(stored));
        Ok(image)
    }

    fn make_image(&self, mut image: ImageWriter) -> Result<Manifest> {
        let disks = self.disks.iter();
        let watch = Watch::start(disks.map(|disk| (disk.meta.name.as_str(), &disk.device)));
        self.observer.phase(if image.parent().is_some() {
            Phase::Comparing
        } else {
            Phase::Transferring
        });
        for disk in self.disks {
            self.sync_disk(&mut image, disk)
                .map_err(|error| advise(error, &image))
                .with_context(|| format!("sync {} ({})", disk.meta.name, disk.device.path().display()))
                .with_context(|| what_is_left(&image))?;
        }
        self.observer.phase(Phase::Processing);
        let (consistency, reason) = watch.finish();
        Ok(image.commit(consistency, &reason)?)
    }

    fn sync_disk(&self, image: &mut ImageWriter, disk: &SourceDisk) -> Result<()> {
        if self.control.is_stopped() {
            bail!(Stopped);
        }
        let (method, reason) = method(image, &disk.meta.name);
        let writer = image.disk(disk.meta.clone())?;
        let base = writer.base().cloned();
        let geometry = writer.geometry();
        let progress = self.control.next_disk();
        let _shown = self
            .observer
            .disk(&disk.meta.name, geometry.size_bytes(), &progress);
        let options = ScanOptions {
            compress_level: self.request.compress_level,
            pace: Some(self.control.pace().clone()),
            ..ScanOptions::default()
        };
        writer.write(|sink| -> Result<Comparison> {
            let mut sink = Checkpointed::new(sink, self.request.checkpoint_every);
            let scanned = scan(
                &disk.device,
                geometry,
                base.as_ref(),
                &options,
                &progress,
                &mut sink,
            );
            if let Err(error) = &scanned
                && error.kind() == changetrack::ErrorKind::Canceled
            {
                sink.suspend().context("keep what is stored already")?;
            }
            Ok(Comparison {
                method,
                reason: reason.to_owned(),
                compared_bytes: scanned?.compared_bytes,
            })
        })?;
        Ok(())
    }
}

/// How changes of a disk are found, and why that way.
fn method(image: &ImageWriter, disk: &str) -> (Method, &'static str) {
    match image.parent() {
        Some(parent) if parent.manifest().disk(disk).is_some() => {
            (Method::Scan, "no tracker watched the disk")
        }
        _ => (Method::Full, "first image of the disk"),
    }
}

/// What a sync that did not end leaves behind, in words.
fn what_is_left(image: &ImageWriter) -> String {
    let label = image.label();
    if image.has_checkpoint() {
        format!(
            "image {label} is not finished; earlier images are as they were, and the next sync goes on with what \
             is stored of this one"
        )
    } else {
        format!("image {label} was given up; earlier images are as they were")
    }
}

/// Says what to do where the sync met damage, which can only be in the image that it builds on.
fn advise(error: anyhow::Error, image: &ImageWriter) -> anyhow::Error {
    match image.parent() {
        Some(parent) if is_damage(&error) => error.context(format!(
            "image {}, which this one builds on, is damaged: `smc-image verify` shows what is hurt, \
             and a sync to a new --job starts afresh with a full image",
            parent.label()
        )),
        _ => error,
    }
}
