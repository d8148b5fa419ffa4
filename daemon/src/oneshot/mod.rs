//! `smcd sync` and `smcd tracker`: one sync now, and a look at the tracker, without the service, for cron and rescue systems.

mod progress;
mod report;
mod target;
mod tracked;

use crate::args::SyncArgs;
use crate::engine::{
    self, Control, DeletedImage, ImageBegun, Observer, Request, Retained, Synced, TrackMode, UseTracker,
};
use crate::owner;
use crate::ownership;
use crate::priority;
use crate::shortfall::Wanted;
use crate::signals;
use anyhow::{Context, Result};
use api::Phase;
use blockio::IoMethod;
use changetrack::Progress;
use cli::output::{complain, unless_closed};
use cli::units::size;
use hostdev::Root;
use imagefmt::{LockWait, Store, TakeOver};
use indicatif::MultiProgress;
use progress::Shown;
use report::Report;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
pub use target::target;
pub use tracked::tracker;

/// Runs one sync, deletes the images beyond those to be kept, and reports both.
///
/// # Errors
/// Those of the sync; `Shortfall` when the image is not what was required; `Damaged` and `Store` also when earlier images cannot
/// be deleted; `Other` when the report cannot be written.
pub fn run(args: &SyncArgs) -> engine::Result<()> {
    let begun = Instant::now();
    imagefmt::check_name("job", &args.job)?;
    let priority = priority::of_reads(args.io_priority);
    let disks = priority.within(|| engine::open_all(&args.disks, args.store.as_deref()))?;
    let control = Arc::new(Control::new(args.bandwidth_limit.unwrap_or(0), priority));
    let opened = Opened::open(args, &control)?;
    stop_on_signals(&control).map_err(engine::Error::other)?;
    let terminal = Terminal {
        quiet: args.json,
        bars: MultiProgress::new(),
    };
    if let method @ IoMethod::Threads(_) = blockio::io_method() {
        terminal.warn(&format!("disks are read and written by {method}"));
    }
    let paths = disks
        .iter()
        .map(|disk| (disk.meta.name.as_str(), disk.device.path()));
    if let Some(note) = priority::without_effect(args.io_priority, paths) {
        terminal.warn(&note);
    }
    let request = request(args, &opened)?;
    let synced = engine::run(opened.destination(), &request, &disks, &control, &terminal)?;
    let label = format!("{}/{}", synced.manifest.job, synced.manifest.sequence);
    let retained = match &opened {
        Opened::Store(store) => retain(store, args, &label)?,
        Opened::Target(_) => Retained::default(),
    };
    for warning in &retained.warnings {
        terminal.warn(warning);
    }
    report(args, &synced, begun.elapsed(), retained.deleted, &label).map_err(engine::Error::other)?;
    judge(args, &synced, &terminal)
}

/// Warns of an image that is not what was wanted; it is kept all the same.
fn judge(args: &SyncArgs, synced: &Synced, terminal: &Terminal) -> engine::Result<()> {
    let wanted = Wanted {
        class: args.consistency,
        is_required: args.require_consistency,
        is_compared: args.verify,
    };
    let warning = wanted.judge(synced)?;
    warning.iter().for_each(|warning| terminal.warn(warning));
    Ok(())
}

fn report(
    args: &SyncArgs,
    synced: &Synced,
    took: Duration,
    deleted: Vec<DeletedImage>,
    label: &str,
) -> Result<()> {
    let report = Report::new(synced, took, deleted)?;
    let printed = if args.json {
        report.print_json()
    } else {
        report.print_text()
    };
    // The image is there, even where nobody reads the report.
    unless_closed(printed)
        .with_context(|| format!("image {label} is complete and safe, but could not be reported"))
}

/// Where the image goes.
enum Opened {
    Store(Store),
    Target(engine::Target),
}

impl Opened {
    fn open(args: &SyncArgs, control: &Arc<Control>) -> engine::Result<Opened> {
        if let Some(name) = &args.target {
            return Ok(Opened::Target(target::open(args, name, control)?));
        }
        let directory = args.store.as_deref().unwrap_or(Path::new(""));
        let store = imagefmt::Store::open_or_create(directory, args.allow_network_fs)?;
        Ok(Opened::Store(
            store.with_lock_wait(Arc::new(Waiting(control.clone()))),
        ))
    }

    fn destination(&self) -> engine::Destination<'_> {
        match self {
            Opened::Store(store) => engine::Destination::Store(store),
            Opened::Target(target) => engine::Destination::Target(target),
        }
    }
}

fn request(args: &SyncArgs, opened: &Opened) -> engine::Result<Request> {
    let machine = owner::machine(&Root::system());
    // Of disks that nobody uses, nothing is mounted.
    let freeze = match args.offline {
        true => None,
        false => args.consistency.freeze_budget(args.freeze),
    };
    let mut request = Request {
        job: args.job.clone(),
        take_up: args.take_up.clone(),
        disks: args.disks.clone(),
        cluster_size: args.cluster_size,
        compress_level: args.compress_level,
        checkpoint_every: Duration::from_secs(args.checkpoint_every.into()),
        accept_changed_disk: args.accept_changed_disk,
        on_read_error: args.on_read_error.into(),
        freeze,
        offline: args.offline,
        verify: args.verify,
        owner: owner::owner(&machine, &args.job, None),
        take_over: TakeOver::Always,
        tracker: UseTracker {
            mode: if args.track || freeze.is_some() {
                TrackMode::Start
            } else {
                TrackMode::IfWatched
            },
            directory: args.tracker_directory.clone(),
            may_scan: true,
        },
    };
    if let (Opened::Store(store), false) = (opened, args.take_over) {
        let ours = request.owner.as_ref();
        request.take_over = ownership::former_owner(store, &request.chain_jobs(), ours, |_| None)?;
    }
    Ok(request)
}

fn retain(store: &Store, args: &SyncArgs, label: &str) -> engine::Result<Retained> {
    let Some(max) = args.max_images else {
        return Ok(Retained::default());
    };
    engine::retain(store, &args.job, max.into()).map_err(|error| {
        engine::Error::from(error).within(format!(
            "image {label} is complete and safe, but earlier ones could not be deleted"
        ))
    })
}

/// Turns a request to end, or the end of the terminal, into a clean stop: what is stored is kept for the next sync.
fn stop_on_signals(control: &Arc<Control>) -> Result<()> {
    let control = control.clone();
    signals::watch(move |signal| {
        if !signals::ENDING.contains(&signal) && signal != signals::HANGUP {
            complain(format_args!("smcd: {} is ignored", signals::name(signal)));
        } else if control.stop() {
            // Asked twice: end at once. What is left behind hurts no image.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        } else {
            complain(format_args!(
                "smcd: {}: the sync ends and keeps what it has stored; a second signal ends it at once",
                signals::name(signal)
            ));
        }
    })
}

/// Waits for another process that frees space in the chain, until the sync is to stop.
#[derive(Debug)]
struct Waiting(Arc<Control>);

impl LockWait for Waiting {
    fn is_wanted(&self) -> bool {
        self.0.may_wait()
    }

    fn held_up(&self, by: Option<&str>) {
        say_held_up(by);
    }
}

fn say_held_up(by: Option<&str>) {
    match by {
        Some(by) => complain(format_args!("smcd: the sync is held up: {by}")),
        None => complain("smcd: the sync is no longer held up"),
    }
}

/// Shows a sync to the user who started it.
struct Terminal {
    /// For programs: no bars and no remarks that are no warnings.
    quiet: bool,
    bars: MultiProgress,
}

impl Observer for Terminal {
    type Shown = Shown;

    fn phase(&self, _phase: Phase) {}

    fn image(&self, image: &ImageBegun) {
        if let (Some(stored), false) = (image.resumed_bytes, self.quiet) {
            complain(format_args!(
                "smcd: resuming the unfinished sync; {} of it are already stored",
                size(stored)
            ));
        }
    }

    fn disk(&self, name: &str, size_bytes: u64, progress: &Arc<Progress>) -> Shown {
        Shown::new(&self.bars, name, size_bytes, progress.clone(), self.quiet)
    }

    fn held_up(&self, by: Option<&str>) {
        say_held_up(by);
    }

    fn warn(&self, text: &str) {
        complain(format_args!("smcd: {text}"));
    }
}
