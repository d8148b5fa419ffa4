//! `smcd sync`: one sync of one or several disks into one image.

use crate::activity::Watch;
use crate::cli::SyncArgs;
use crate::disks::{self, SourceDisk};
use crate::progress::Shown;
use crate::report::Report;
use anyhow::{Context, Result};
use changetrack::{Progress, ScanOptions, scan};
use imagefmt::{Comparison, ImageWriter, Method};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Runs one sync and reports it.
pub fn run(args: &SyncArgs) -> Result<()> {
    let begun = Instant::now();
    imagefmt::check_name("job", &args.job)?;
    let disks = disks::open_all(args)?;
    let store = imagefmt::open_or_create_store(&args.store, args.allow_network_fs)?;
    let names: Vec<String> = disks.iter().map(|disk| disk.meta.name.clone()).collect();
    let mut image = store.begin(&args.job, args.cluster_size, &names)?;
    for (sequence, error) in image.passed_over() {
        eprintln!(
            "smcd: image {}/{sequence} is damaged; comparing with an earlier one: {error}",
            args.job
        );
    }
    if let Some(parent) = image.parent() {
        disks::check_against(parent, &disks, args.accept_changed_disk)?;
    }
    let stopper = Stopper::install()?;
    let watch = Watch::start(disks.iter().map(|disk| (disk.meta.name.as_str(), &disk.device)));
    for disk in &disks {
        let progress = stopper.progress();
        sync_disk(&mut image, disk, args, &progress)
            .map_err(|error| advise(error, &image))
            .with_context(|| format!("sync {} ({})", disk.meta.name, disk.device.path().display()))
            .with_context(|| {
                format!(
                    "image {} was given up; earlier images are as they were",
                    image.label()
                )
            })?;
    }
    let (consistency, reason) = watch.finish();
    let manifest = image.commit(consistency, &reason)?;
    let report = Report::new(&manifest, begun.elapsed())?;
    let printed = if args.json {
        report.print_json()
    } else {
        report.print_text()
    };
    match printed {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        printed => printed.with_context(|| {
            let label = format!("{}/{}", manifest.job, manifest.sequence);
            format!("image {label} is complete and safe, but could not be reported")
        }),
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
    let writer = image.disk(disk.meta.clone())?;
    let parent = writer.parent().cloned();
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
    writer.write(|push| -> Result<Comparison> {
        let scanned = scan(&disk.device, geometry, parent.as_ref(), &options, progress, push)?;
        let (method, reason) = match parent {
            Some(_) => (Method::Scan, "no tracker watched the disk"),
            None => (Method::Full, "first image of the disk"),
        };
        Ok(Comparison {
            method,
            reason: reason.to_owned(),
            compared_bytes: scanned.compared_bytes,
        })
    })?;
    Ok(())
}

/// Turns SIGINT and SIGTERM into a clean stop: layers that no image needs are removed.
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
