//! `smcd sync`: one sync of one or several disks into one image.

use crate::activity::Watch;
use crate::checkpoints::Checkpointed;
use crate::cli::SyncArgs;
use crate::disks::{self, SourceDisk};
use crate::progress::Shown;
use crate::report::Report;
use crate::retention::{self, Retained};
use anyhow::{Context, Result};
use changetrack::{Progress, ScanOptions, scan};
use imagefmt::{Comparison, ImageWriter, Manifest, Method, Store};
use indicatif::HumanBytes;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Runs one sync, deletes what there is too much of, and reports both.
pub fn run(args: &SyncArgs) -> Result<()> {
    let begun = Instant::now();
    imagefmt::check_name("job", &args.job)?;
    let disks = disks::open_all(args)?;
    let store = imagefmt::open_or_create_store(&args.store, args.allow_network_fs)?;
    let stopper = Stopper::install()?;
    let (manifest, resumed) = sync(&store, args, &disks, &stopper)?;
    let label = format!("{}/{}", manifest.job, manifest.sequence);
    let retained = match args.max_images {
        Some(max) => retention::apply(&store, &args.job, max.into()).with_context(|| {
            format!("image {label} is complete and safe, but earlier ones could not be deleted")
        })?,
        None => Retained::default(),
    };
    for warning in &retained.warnings {
        eprintln!("smcd: {warning}");
    }
    let report = Report::new(&manifest, begun.elapsed(), resumed, retained.deleted)?;
    let printed = if args.json {
        report.print_json()
    } else {
        report.print_text()
    };
    match printed {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        printed => {
            printed.with_context(|| format!("image {label} is complete and safe, but could not be reported"))
        }
    }
}

/// Makes an image, and says whether it goes on with an unfinished sync. What that one stored is dropped if it
/// turns out to be damaged.
fn sync(store: &Store, args: &SyncArgs, disks: &[SourceDisk], stopper: &Stopper) -> Result<(Manifest, bool)> {
    let image = begin(store, args, disks)?;
    let resumed = image.resumed().map(|unfinished| unfinished.chain().to_owned());
    match (make_image(image, args, disks, stopper), resumed) {
        (Err(error), Some(chain)) if crate::is_damage(&error) => {
            eprintln!("smcd: what the unfinished sync stored is damaged; starting afresh: {error:#}");
            store.discard_checkpoint(&chain)?;
            let image = begin(store, args, disks)?;
            make_image(image, args, disks, stopper).map(|manifest| (manifest, false))
        }
        (made, resumed) => made.map(|manifest| (manifest, resumed.is_some())),
    }
}

/// Becomes the job's writer and refuses what does not fit the job, before anything is written.
fn begin(store: &Store, args: &SyncArgs, disks: &[SourceDisk]) -> Result<ImageWriter> {
    let names: Vec<String> = disks.iter().map(|disk| disk.meta.name.clone()).collect();
    let image = match &args.take_up {
        Some(from) => store.take_up(&args.job, from, &names)?,
        None => store.begin(&args.job, args.cluster_size, &names)?,
    };
    for (sequence, error) in image.passed_over() {
        eprintln!(
            "smcd: image {}/{sequence} is damaged; comparing with an earlier one: {error}",
            args.job
        );
    }
    for known in image.parent().into_iter().chain(image.resumed()) {
        disks::check_against(known, disks, args.accept_changed_disk)?;
    }
    if let Some(unfinished) = image.resumed().filter(|_| !args.json) {
        let stored = unfinished
            .manifest()
            .disks
            .iter()
            .map(|disk| disk.stored_bytes)
            .sum();
        eprintln!(
            "smcd: going on with the sync that was not finished; {} of it are stored already",
            HumanBytes(stored)
        );
    }
    Ok(image)
}

fn make_image(
    mut image: ImageWriter,
    args: &SyncArgs,
    disks: &[SourceDisk],
    stopper: &Stopper,
) -> Result<Manifest> {
    let watch = Watch::start(disks.iter().map(|disk| (disk.meta.name.as_str(), &disk.device)));
    for disk in disks {
        let progress = stopper.progress();
        sync_disk(&mut image, disk, args, &progress)
            .map_err(|error| advise(error, &image))
            .with_context(|| format!("sync {} ({})", disk.meta.name, disk.device.path().display()))
            .with_context(|| what_is_left(&image))?;
    }
    let (consistency, reason) = watch.finish();
    Ok(image.commit(consistency, &reason)?)
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

/// Whoever reads our output has gone; the image is there all the same.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    error.downcast_ref::<std::io::Error>().is_some_and(closed)
        || error
            .downcast_ref::<serde_json::Error>()
            .is_some_and(|error| error.io_error_kind() == Some(std::io::ErrorKind::BrokenPipe))
}

/// Says what to do where the sync met damage, which can only be in the image that it builds on.
fn advise(error: anyhow::Error, image: &ImageWriter) -> anyhow::Error {
    match image.parent() {
        Some(parent) if crate::is_damage(&error) => error.context(format!(
            "image {}, which this one builds on, is damaged: `smc-image verify` shows what is hurt, \
             and a sync to a new --job starts afresh with a full image",
            parent.label()
        )),
        _ => error,
    }
}

fn sync_disk(
    image: &mut ImageWriter,
    disk: &SourceDisk,
    args: &SyncArgs,
    progress: &Arc<Progress>,
) -> Result<()> {
    let is_known = |parent: &imagefmt::Image| parent.manifest().disk(&disk.meta.name).is_some();
    let (method, reason) = match image.parent() {
        Some(parent) if is_known(parent) => (Method::Scan, "no tracker watched the disk"),
        _ => (Method::Full, "first image of the disk"),
    };
    let writer = image.disk(disk.meta.clone())?;
    let base = writer.base().cloned();
    let geometry = writer.geometry();
    let options = ScanOptions {
        compress_level: args.compress_level,
        ..ScanOptions::default()
    };
    let _shown = Shown::new(
        &disk.meta.name,
        geometry.size_bytes(),
        progress.clone(),
        args.json,
    );
    writer.write(|sink| -> Result<Comparison> {
        let mut sink = Checkpointed::new(sink, Duration::from_secs(args.checkpoint_every.into()));
        let scanned = scan(
            &disk.device,
            geometry,
            base.as_ref(),
            &options,
            progress,
            &mut sink,
        );
        let scanned = match scanned {
            Err(error) if error.kind() == changetrack::ErrorKind::Canceled => {
                sink.suspend().context("keep what is stored already")?;
                return Err(error.into());
            }
            scanned => scanned?,
        };
        Ok(Comparison {
            method,
            reason: reason.to_owned(),
            compared_bytes: scanned.compared_bytes,
        })
    })?;
    Ok(())
}

/// Turns SIGINT and SIGTERM into a clean stop: what is stored is kept for the next sync.
struct Stopper {
    stopped: Arc<AtomicBool>,
    current: Arc<Mutex<Arc<Progress>>>,
}

impl Stopper {
    fn install() -> Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        let current: Arc<Mutex<Arc<Progress>>> = Arc::default();
        let mut signals = Signals::new([SIGINT, SIGTERM]).context("watch for signals")?;
        let (flag, progress) = (stopped.clone(), current.clone());
        thread::spawn(move || {
            for signal in signals.forever() {
                if flag.swap(true, Ordering::Relaxed) {
                    // Asked twice: end at once. What is left behind hurts no image.
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
                let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                progress.cancel.store(true, Ordering::Relaxed);
            }
        });
        Ok(Self { stopped, current })
    }

    /// The progress of the next disk, already stopped if the signal came before.
    fn progress(&self) -> Arc<Progress> {
        let progress = Arc::new(Progress::default());
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = progress.clone();
        // Looked at after the exchange: a signal between the two finds the new one.
        progress
            .cancel
            .store(self.stopped.load(Ordering::Relaxed), Ordering::Relaxed);
        progress
    }
}
