//! One sync of a job, in a thread of its own: hooks, image, retention, and what it comes to.

use super::deleting;
use super::hooks::{self, HookEnv, Stage};
use super::images;
use super::live::{LiveRun, run_begun};
use super::note_writer;
use super::outcome::{Ended, Work, conclude, interrupt, unfinished_run};
use super::owed;
use super::owners;
use super::parts::Parts;
use super::sending;
use super::table::{JobTable, Locked};
use super::targets;
use super::tracking;
use super::written;
use crate::clock::{Deadline, Moment};
use crate::engine::{
    self, Control, Destination, ErrorKind, ImageBegun, KnownFrom, Observer, Place, Request, SourceDisk,
    Synced,
};
use crate::job::{ActiveRun, DiskRecord, Ending, JobRecord};
use crate::priority;
use crate::shortfall::Wanted;
use crate::state::instant_view;
use anyhow::{Context, Result};
use api::{Phase, RunDisk, RunOutcome, RunType, RunView, Status};
use changetrack::Progress;
use imagefmt::{LockWait, Manifest, Store};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Makes a job Running: a new run begins.
fn begin_run(job: &mut JobRecord, run_type: RunType, now: &Moment) {
    // A run that is resumed inherits what the one before it was.
    let from_waiting = match job.status {
        Status::Running => job.run.as_ref().is_some_and(|run| run.from_waiting),
        status => status == Status::Waiting && !job.completing,
    };
    job.runs = job.runs.saturating_add(1);
    // Saved with it, so before the first pre hook starts. A sync to a target waits for that before.
    job.hooks_owed = job.place.store().map_or(job.hooks_owed, |_| Some(job.runs));
    job.status = Status::Running;
    job.error = None;
    job.warnings.clear();
    job.next_sync = None;
    job.deferred = None;
    // Saved with it, so before the tracker is attached.
    job.unwatch_owed |= job.is_to_be_tracked();
    job.run = Some(ActiveRun {
        number: job.runs,
        run_type,
        image: None,
        ending: None,
        from_waiting,
        written: written::count(job, now),
    });
}

/// Makes a job Running, after a change, and starts its sync. The caller has checked that the job's state allows it.
///
/// # Errors
/// When it cannot be saved, or no thread can be started.
pub fn launch(
    parts: &Arc<Parts>,
    table: &mut Locked<'_>,
    name: &str,
    run_type: RunType,
    change: impl FnOnce(&mut JobRecord),
) -> Result<()> {
    let now = parts.now();
    let begun = |job: &JobRecord| run_begun(job.runs, run_type, now.wall);
    let job = table.update(name, |job| {
        change(job);
        begin_run(job, run_type, &now);
        Ok(Some(begun(job)))
    })?;
    let run = begun(&job);
    tracing::info!(job = name, run = run.number, kind = %run_type, "sync started");
    spawn(parts, table, job, run, Work::Sync)
}

/// The image of an interrupted run turns out to be there: it is counted, and not made again.
///
/// # Errors
/// As [`launch`].
pub fn conclude_late(
    parts: &Arc<Parts>,
    table: &mut Locked<'_>,
    name: &str,
    manifest: Manifest,
) -> Result<()> {
    let mut run = unfinished_run(table, table.job(name)?);
    run.error = None;
    let job = table.update(name, |job| {
        job.status = Status::Running;
        job.error = None;
        Ok(None)
    })?;
    spawn(parts, table, job, run, Work::Conclude(Box::new(manifest)))
}

/// Starts the thread of a run that is saved already.
///
/// # Errors
/// When no thread can be started: the run has failed then, and the job is InError.
pub fn spawn(
    parts: &Arc<Parts>,
    table: &mut Locked<'_>,
    job: JobRecord,
    run: RunView,
    work: Work,
) -> Result<()> {
    let live = Arc::new(LiveRun::new(
        &job.name,
        run.number,
        run.started,
        Control::new(job.bandwidth_limit_bytes, priority::of_reads(job.io_priority)),
    ));
    live.send_rate.set(job.send_limit());
    let ending = job.run.as_ref().and_then(|run| run.ending);
    parts.live.begin(&job.name, live.clone(), ending);
    let waits_first = job.place.target().is_some() && matches!(work, Work::Sync);
    let runner = Runner {
        parts: parts.clone(),
        concluding: matches!(work, Work::Conclude(_)),
        warnings: Mutex::default(),
        is_released: AtomicBool::new(waits_first),
        in_use: AtomicBool::new(false),
        images: Mutex::default(),
        job,
        live,
    };
    let begun = run.clone();
    let name = runner.job.name.clone();
    let thread = thread::Builder::new().name(format!("sync {name}"));
    if let Err(error) = thread.spawn(move || runner.run(run, work)) {
        parts.live.end(&name);
        let error = anyhow::Error::from(error).context(format!("start the sync of job {name}"));
        // The job must not stay Running for ever.
        let ended = Ended::Failed(format!("{error:#}"));
        let left = interrupt(table, &name, begun, &ended, &parts.now());
        // No pre hook has run.
        let left = left.and_then(|_| {
            table.update(&name, |job| {
                job.hooks_owed = None;
                Ok(None)
            })
        });
        if let Err(error) = left {
            tracing::error!("{error}");
        }
        return Err(error);
    }
    Ok(())
}

/// Notes which image a run makes, so that after a crash it is known whether it did.
fn note_image(table: &JobTable, name: &str, sequence: u64) -> Result<()> {
    table.update(name, |job| {
        if let Some(run) = &mut job.run {
            run.image = Some(sequence);
        }
        Ok(None)
    })?;
    Ok(())
}

/// Counts what an audit has found, at once: a sync that is killed meanwhile has found it all the same.
fn note_tracker_miss(table: &JobTable, name: &str) -> Result<()> {
    table.update(name, |job| {
        job.tracker_misses += 1;
        Ok(None)
    })?;
    Ok(())
}

/// The image is there: what was modified counts from now on. Returns how many images are kept.
fn image_made(table: &JobTable, name: &str) -> Result<Option<usize>> {
    let mut job = table.job(name)?;
    let saved = table.update(name, |job| {
        job.apply_pending();
        // It was for this disk: the next unknown disk is refused again.
        job.accept_changed_disk = false;
        job.take_over = false;
        Ok(None)
    });
    match saved {
        Ok(saved) => job = saved,
        Err(error) => {
            job.apply_pending();
            tracing::error!(job = name, "{error}");
        }
    }
    let max = job.schedule.and_then(|schedule| schedule.max_images);
    Ok(max.and_then(|max| usize::try_from(max).ok()))
}

/// How long whoever holds the chain is waited for: a `gc`, or what a daemon that was killed had just begun to start.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Runner {
    pub(super) parts: Arc<Parts>,
    /// As it was when the run began.
    pub(super) job: JobRecord,
    pub(super) live: Arc<LiveRun>,
    /// Whether the image was there before: then nothing about the sync's time is known.
    concluding: bool,
    warnings: Mutex<Vec<String>>,
    /// Whether its post hooks have run, and no pre hook since: while it waits for its target.
    is_released: AtomicBool,
    /// Whether images that should go stayed, as they are in use.
    in_use: AtomicBool,
    /// The images that the job has in the end.
    images: Mutex<Option<Vec<u64>>>,
}

impl Runner {
    /// The thread. Whatever happens in it, the job leaves Running.
    fn run(self, mut run: RunView, work: Work) {
        let name = self.job.name.clone();
        let result = catch_unwind(AssertUnwindSafe(|| self.work(&mut run, work)));
        let result = result.unwrap_or_else(|_| {
            self.post_hooks_after_a_bug();
            Err(engine::Error::new(
                ErrorKind::Other,
                "the sync failed because of a bug in smcd; see its log (journalctl -u smcd). Earlier images are unchanged",
            ))
        });
        self.conclude(run, result);
        tracking::release_in_background(&self.parts, &name);
        note_writer::queue(&self.parts, &self.job.place, &name);
    }

    fn work(&self, run: &mut RunView, work: Work) -> engine::Result<()> {
        let made = match work {
            Work::Sync => self.sync(),
            Work::Conclude(manifest) => Ok(Synced {
                manifest: *manifest,
                resumed: false,
                audit_took: Duration::ZERO,
                compared: None,
            }),
        };
        if let Ok(synced) = &made
            && let Err(error) = self.describe(run, synced)
        {
            self.warn(&format!("the image cannot be described: {error:#}"));
        }
        self.live.phase(Phase::Cleaning);
        let judged = made.as_ref().map_or(Ok(()), |synced| self.judge(synced));
        self.post_hooks(run, made.as_ref().err().or(judged.as_ref().err()));
        made?;
        self.retain(run).map_err(engine::Error::other)?;
        self.count_images();
        judged
    }

    /// Hooks, disks, image.
    fn sync(&self) -> engine::Result<Synced> {
        let run_type = self.job.run.as_ref().map_or(RunType::Manual, |run| run.run_type);
        // No hook runs for a sync that would be too early; the engine looks again.
        tracking::check_early_scan(&self.parts, &self.job, run_type).map_err(engine::Error::untracked)?;
        let mut request = owners::sync_request(&self.parts.machine, &self.parts.config, &self.job);
        request.tracker.may_scan = tracking::may_scan(&self.parts, &self.job, run_type);
        match &self.job.place {
            Place::Store(path) => self.sync_into(path, request),
            Place::Target(name) => sending::sync(self, name, &request),
        }
    }

    fn sync_into(&self, path: &Path, mut request: Request) -> engine::Result<Synced> {
        self.pre_hooks()?;
        // The store first: it is known of one that is opened whether it answers.
        let store = self
            .store(path)
            .map_err(|error| engine::Error::from(error).within(format!("open store {}", path.display())))?;
        let disks = self.open_disks(&request, Some(path))?;
        owners::allow_former_owner(&self.parts.table, &store, &mut request)?;
        let begun = Instant::now();
        loop {
            match engine::run(
                Destination::Store(&store),
                &request,
                &disks,
                &self.live.control,
                self,
            ) {
                Err(error)
                    if error.kind() == ErrorKind::Busy
                        && begun.elapsed() < BUSY_PATIENCE
                        && !self.is_stopped() =>
                {
                    thread::sleep(Duration::from_millis(100));
                }
                made => return made,
            }
        }
    }

    /// Runs the pre hooks; the run owes its post hooks from before that on.
    ///
    /// # Errors
    /// `Refused` if one fails.
    pub(super) fn pre_hooks(&self) -> engine::Result<()> {
        if self.is_released.swap(false, Ordering::Relaxed) {
            let owed = self.parts.table.update(&self.job.name, |job| {
                job.hooks_owed = Some(self.live.number);
                Ok(None)
            });
            owed.map_err(|error| engine::Error::other(error.into()))?;
        }
        let dir = &self.parts.config.hooks_dir;
        hooks::run(Stage::Pre, dir, &self.job, &self.hook_env(), &|| {
            self.is_stopped()
        })
        .context("the sync did not start")
        .map_err(engine::Error::refused)
    }

    /// The post hooks run, and the run goes on later: it waits for its target.
    pub(super) fn release_for_now(&self) {
        self.run_post_hooks(RunOutcome::Interrupted, String::new());
        self.is_released.store(true, Ordering::Relaxed);
    }

    /// Opens the disks, and compares them with those that the job knows.
    ///
    /// # Errors
    /// As [`engine::open_all`], and `Refused` for disks that are not the job's.
    pub(super) fn open_disks(
        &self,
        request: &Request,
        store: Option<&Path>,
    ) -> engine::Result<Vec<SourceDisk>> {
        let priority = self.live.control.pace().priority();
        let disks = priority.within(|| engine::open_all(&request.disks, store))?;
        self.check_disks(&disks)?;
        Ok(disks)
    }

    /// Whether it was asked to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.live.control.is_stopped()
    }

    /// A store of the job; what of it waits for another process shows in the run's progress, and ends when the run is ended.
    fn store(&self, path: &Path) -> imagefmt::Result<Store> {
        let store = self.parts.stores.get(path)?;
        Ok(Store::clone(&store).with_lock_wait(self.live.clone()))
    }

    /// Before there is an image, the disks are compared with those that the job was created for.
    fn check_disks(&self, disks: &[SourceDisk]) -> engine::Result<()> {
        if self.job.synced {
            return Ok(());
        }
        let known: Vec<_> = self.job.disks.iter().map(DiskRecord::known).collect();
        let given: Vec<_> = disks.iter().map(SourceDisk::given).collect();
        let from = KnownFrom::Job(self.job.name.clone());
        let warnings = engine::check_known(&from, &known, &given, self.job.accept_changed_disk)?;
        warnings.iter().for_each(|warning| self.warn(warning));
        Ok(())
    }

    fn hook_env(&self) -> HookEnv {
        HookEnv {
            run: self.live.number,
            ..HookEnv::default()
        }
    }

    /// After the image, or what was to become one. What fails here is told, and changes nothing else.
    fn post_hooks(&self, run: &RunView, failure: Option<&engine::Error>) {
        if self.is_released.load(Ordering::Relaxed) {
            return;
        }
        let outcome = match failure {
            None => RunOutcome::Succeeded,
            Some(_) if self.is_shutdown() => RunOutcome::Interrupted,
            Some(_) if self.is_stopped() => RunOutcome::Stopped,
            Some(error) if self.is_deferred(error) => RunOutcome::Deferred,
            Some(_) => RunOutcome::Failed,
        };
        self.run_post_hooks(outcome, run.image.clone().unwrap_or_default());
    }

    fn run_post_hooks(&self, outcome: RunOutcome, image: String) {
        let env = HookEnv {
            outcome: outcome.to_string(),
            image,
            ..self.hook_env()
        };
        if let Some(warning) = owed::run_post_hooks(&self.parts, &self.job, &env) {
            self.warn(&warning);
        }
    }

    /// A sync that panicked has applications to release all the same.
    fn post_hooks_after_a_bug(&self) {
        let job = self.parts.table.job(&self.job.name);
        if job.is_ok_and(|job| job.hooks_owed == Some(self.live.number)) {
            let run = AssertUnwindSafe(|| self.run_post_hooks(RunOutcome::Failed, String::new()));
            // What is owed still is run within a minute.
            let _ = catch_unwind(run);
        }
    }

    pub(super) fn progressed(&self) {
        self.parts.table.progressed(&self.job.name);
    }

    fn is_shutdown(&self) -> bool {
        self.parts.table.lock().is_closing()
    }

    /// Deletes the earliest unused images beyond those to be kept.
    fn retain(&self, run: &mut RunView) -> Result<()> {
        let max = image_made(&self.parts.table, &self.job.name)?;
        let (Some(max), Some(path)) = (max, self.job.place.store()) else {
            return Ok(());
        };
        let retained = self
            .store(path)
            .and_then(|store| engine::retain(&store, &self.job.name, max));
        match retained {
            Ok(retained) => {
                self.in_use.store(retained.in_use, Ordering::Relaxed);
                run.deleted = retained.deleted.into_iter().map(|gone| gone.image).collect();
                retained.warnings.iter().for_each(|warning| self.warn(warning));
            }
            // The image is there: a store that cannot delete is no reason to call the sync failed.
            Err(error) => {
                self.in_use.store(true, Ordering::Relaxed);
                self.warn(&format!(
                    "earlier images could not be deleted: {}",
                    error.full_message()
                ));
            }
        }
        Ok(())
    }

    /// Asks the store or target which images there are now.
    fn count_images(&self) {
        let name = &self.job.name;
        let found = match &self.job.place {
            Place::Store(path) => self.store(path).and_then(|store| images::sequences(&store, name)),
            Place::Target(target) => targets::open(&self.parts, target)
                .and_then(|files| remote::images(&files, name))
                .map_err(imagefmt::Error::from),
        };
        match found {
            Ok(found) => *self.images.lock().unwrap_or_else(PoisonError::into_inner) = Some(found),
            Err(error) => self.warn(&format!("its images cannot be listed: {}", error.full_message())),
        }
    }

    /// Warns of an image that is not what was wanted; it is kept all the same.
    ///
    /// # Errors
    /// `Shortfall` if the sync is to fail then.
    fn judge(&self, synced: &Synced) -> engine::Result<()> {
        let wanted = Wanted {
            class: self.job.consistency,
            is_required: self.job.require_consistency,
            is_compared: self.job.verifying,
        };
        let warning = wanted.judge(synced)?;
        warning.iter().for_each(|warning| self.warn(warning));
        Ok(())
    }

    /// What the history tells of the image.
    fn describe(&self, run: &mut RunView, synced: &Synced) -> Result<()> {
        let manifest = &synced.manifest;
        let cluster_size = manifest.cluster_size()?;
        run.image = Some(self.job.label(manifest.sequence));
        run.kind = Some(manifest.kind.to_string());
        run.method = Some(manifest.method().to_string());
        run.consistency = Some(manifest.consistency.to_string());
        run.consistency_reason = Some(manifest.consistency_reason.clone());
        run.verified = synced.compared.as_ref().map(|compared| compared.is_equal);
        run.instant = manifest.instant.clone().map(instant_view);
        run.resumed = synced.resumed;
        run.compared_bytes = manifest.disks.iter().map(|disk| disk.compared_bytes).sum();
        run.compare_rate_bytes = self.live.compare_rate(run.compared_bytes);
        run.dirty_bytes = manifest.disks.iter().map(|disk| disk.dirty_bytes).sum();
        run.stored_bytes = manifest.disks.iter().map(|disk| disk.stored_bytes).sum();
        let disk = |disk: &imagefmt::DiskRecord| -> Result<RunDisk> {
            Ok(RunDisk {
                name: disk.name.clone(),
                size_bytes: disk.size_bytes,
                method: Some(disk.method.to_string()),
                method_reason: Some(disk.method_reason.clone()),
                compared_bytes: disk.compared_bytes,
                audited_bytes: disk.audited_bytes,
                dirty_bytes: disk.dirty_bytes,
                stored_bytes: disk.stored_bytes,
                repaired_clusters: disk.repaired_clusters,
                unreadable_clusters: disk.unreadable_clusters,
                digest: Some(disk.disk_digest(cluster_size)?.to_string()),
            })
        };
        run.disks = manifest.disks.iter().map(disk).collect::<Result<_>>()?;
        Ok(())
    }

    /// Writes down what the run came to, and lets go of the job.
    fn conclude(&self, mut run: RunView, result: engine::Result<()>) {
        let name = &self.job.name;
        let now = self.parts.now();
        run.finished = Some(now.wall);
        run.seconds = (!self.concluding).then(|| self.live.elapsed().as_secs_f64());
        run.transfer = self.live.transferred();
        run.warnings = self
            .warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut table = self.parts.table.lock();
        let ending = self.parts.live.get(name).and_then(|(_, ending)| ending);
        let ended = self.ended(result, ending);
        run.outcome = ended.outcome();
        if let Ended::Failed(reason) | Ended::Deferred(reason) | Ended::TooEarly(reason) = &ended {
            run.error = Some(reason.clone());
        }
        let saved = table.update(name, |job| {
            self.leave(job, &run, &ended, &now);
            Ok(Some(run.clone()))
        });
        if let Err(error) = saved {
            // The disk that holds the state is in trouble.
            tracing::error!(job = name, "{error}");
            table.update_unsaved(name, Some(run.clone()), |job| self.leave(job, &run, &ended, &now));
        }
        self.parts.live.end(name);
        drop(table);
        self.progressed();
        if ended == Ended::Asked(Ending::Cancel) {
            deleting::discard(&self.parts, &self.job);
        }
        log(name, &run);
    }

    /// What an ended run leaves in its job.
    fn leave(&self, job: &mut JobRecord, run: &RunView, ended: &Ended, now: &Moment) {
        let written = job.run.as_ref().and_then(|run| run.written.clone());
        *job = conclude(job.clone(), ended, now);
        job.warnings.clone_from(&run.warnings);
        // One that failed may have made an image: it only is not what was wanted.
        if run.outcome != RunOutcome::Succeeded && run.image.is_none() {
            return;
        }
        job.synced = true;
        if run.method.as_deref().is_some_and(|method| method != "tracked") {
            let least = Duration::from_secs(job.min_scan_interval_seconds);
            job.scan_from = Some(Deadline::after(now, least.saturating_sub(self.live.elapsed())));
        }
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner).clone();
        job.images = images.unwrap_or_else(|| std::mem::take(&mut job.images));
        job.written = written.or_else(|| written::count(job, now));
        job.retention_pending = self.in_use.load(Ordering::Relaxed);
        for disk in &mut job.disks {
            if let Some(synced) = run.disks.iter().find(|synced| synced.name == disk.name) {
                disk.size_bytes = synced.size_bytes;
            }
        }
    }

    /// Whether a sync that did not begin is tried again by itself.
    fn is_deferred(&self, error: &engine::Error) -> bool {
        let from_waiting = self.job.run.as_ref().is_some_and(|run| run.from_waiting);
        match error.kind() {
            ErrorKind::Busy => from_waiting,
            kind => kind == ErrorKind::Untracked,
        }
    }

    fn ended(&self, result: engine::Result<()>, ending: Option<Ending>) -> Ended {
        let Err(error) = result else {
            return Ended::Image(ending);
        };
        match ending {
            Some(ending) if self.is_stopped() => {
                if error.kind() != ErrorKind::Stopped {
                    tracing::warn!(
                        job = self.job.name,
                        "while it was ended: {}",
                        error.full_message()
                    );
                }
                Ended::Asked(ending)
            }
            _ if !self.is_deferred(&error) => Ended::Failed(error.full_message()),
            _ if error.kind() == ErrorKind::Untracked => Ended::TooEarly(error.full_message()),
            _ => Ended::Deferred(error.full_message()),
        }
    }
}

impl Observer for Runner {
    type Shown = ();

    fn phase(&self, phase: Phase) {
        self.live.phase(phase);
        self.progressed();
    }

    fn image(&self, image: &ImageBegun) {
        self.live
            .image(&image.label, image.total_bytes, image.resumed_bytes.is_some());
        if let Err(error) = note_image(&self.parts.table, &self.job.name, image.sequence) {
            tracing::error!(job = self.job.name, image = image.label, "{error:#}");
        }
    }

    fn planned(&self, total_bytes: u64) {
        self.live.planned(total_bytes);
    }

    fn disk(&self, name: &str, planned_bytes: u64, progress: &Arc<Progress>) {
        self.live.disk(name, planned_bytes, progress);
    }

    fn held_up(&self, by: Option<&str>) {
        self.live.held_up(by);
    }

    fn tracker_missed(&self) {
        if let Err(error) = note_tracker_miss(&self.parts.table, &self.job.name) {
            tracing::error!(job = self.job.name, "{error:#}");
        }
    }

    fn before_freeze(&self) -> std::result::Result<(), String> {
        owed::owe_thaw(&self.parts, &self.job.name, self.live.number).map_err(|refusal| refusal.message)?;
        let dir = &self.parts.config.hooks_dir;
        hooks::run(Stage::Freeze, dir, &self.job, &self.hook_env(), &|| {
            self.is_stopped()
        })
        .map_err(|error| format!("{error:#}"))
    }

    fn after_thaw(&self) {
        if let Some(warning) = owed::run_thaw_hooks(&self.parts, &self.job, &self.hook_env()) {
            self.warn(&warning);
        }
    }

    fn warn(&self, text: &str) {
        tracing::warn!(job = self.job.name, "{text}");
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.push(text.to_owned());
    }
}

fn log(job: &str, run: &RunView) {
    let image = run.image.as_deref().unwrap_or("-");
    let seconds = run.seconds.unwrap_or(0.0);
    match &run.error {
        Some(reason) if run.outcome == RunOutcome::Deferred => {
            tracing::warn!(job, run = run.number, seconds, "sync deferred: {reason}");
        }
        Some(error) => tracing::error!(job, run = run.number, seconds, "sync failed: {error}"),
        None => tracing::info!(
            job,
            image,
            run = run.number,
            seconds,
            compared_bytes = run.compared_bytes,
            dirty_bytes = run.dirty_bytes,
            stored_bytes = run.stored_bytes,
            "sync {}",
            run.outcome
        ),
    }
}
