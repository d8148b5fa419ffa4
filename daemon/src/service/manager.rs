//! The one who knows all jobs: in memory, and written down before anybody is told.

use super::live::LiveRun;
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::job::{JobRecord, Refusal, Refused};
use crate::state::{JobNote, KnownStores, NOTE_RUNS, State};
use anyhow::Context;
use api::{Action, ErrorKind, RunView, rules};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// All jobs of this machine.
#[derive(Debug)]
pub struct Manager {
    pub(super) config: Config,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) started: Timestamp,
    inner: Mutex<Inner>,
    /// Held while a note is written to a store: one at a time, in the order of what they tell.
    notes: Mutex<()>,
    /// Told whenever a job changes.
    changed: Condvar,
}

/// What the mutex guards.
#[derive(Debug)]
pub(super) struct Inner {
    state: State,
    known: KnownStores,
    pub jobs: BTreeMap<String, JobRecord>,
    pub live: BTreeMap<String, (Arc<LiveRun>, Option<super::live::Ending>)>,
    /// Jobs whose images are being deleted by a thread.
    pub deleting: std::collections::BTreeSet<String>,
    /// The daemon ends: nothing begins any more.
    pub closing: bool,
    /// What the user should know of the daemon itself.
    pub warnings: Vec<String>,
}

impl Manager {
    /// Takes over what was read from the state.
    pub(super) fn new(
        config: Config,
        clock: Arc<dyn Clock>,
        state: State,
        jobs: Vec<JobRecord>,
        warnings: Vec<String>,
    ) -> Self {
        let known = KnownStores::open(&config.state_dir);
        Self {
            started: clock.now().wall,
            inner: Mutex::new(Inner {
                state,
                known,
                jobs: jobs.into_iter().map(|job| (job.name.clone(), job)).collect(),
                live: BTreeMap::new(),
                deleting: std::collections::BTreeSet::new(),
                closing: false,
                warnings,
            }),
            notes: Mutex::new(()),
            changed: Condvar::new(),
            config,
            clock,
        }
    }

    /// Now.
    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic could leave half done is written down or not: nothing in memory is ahead of the state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the clock lets the scheduler sleep.
    pub fn look_up(&self) -> Duration {
        self.clock.look_up()
    }

    /// Sleeps for `time`, or until a job changes.
    pub fn wait(&self, time: Duration) {
        let inner = self.lock();
        let slept = self.changed.wait_timeout(inner, time);
        drop(slept.unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes a job down, and a run of it with it, and only then lets it be seen.
    pub(super) fn save(
        &self,
        inner: &mut Inner,
        job: JobRecord,
        run: Option<&RunView>,
    ) -> anyhow::Result<()> {
        inner
            .state
            .save(&job, run)
            .with_context(|| format!("write down job {}", job.name))?;
        inner.jobs.insert(job.name.clone(), job);
        self.changed.notify_all();
        Ok(())
    }

    /// Puts a copy of what is known of a job into its store, for the day when the state is lost.
    ///
    /// It may wait for the store's disk, so the mutex is not held. A store that takes none is no reason to fail.
    pub(super) fn leave_note(&self, name: &str) {
        let _turn = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let note = {
            let inner = self.lock();
            let Some(job) = inner.jobs.get(name).cloned() else {
                return;
            };
            let runs = inner.state.runs(name, NOTE_RUNS).unwrap_or_default();
            JobNote { job, runs }
        };
        let kept = imagefmt::open_store(&note.job.store).and_then(|store| store.put_note(name, &note));
        if let Err(error) = kept {
            tracing::warn!(job = name, "no copy of the job is kept in its store: {error}");
        }
    }

    /// Takes the copy of a forgotten job out of its store.
    pub(super) fn take_note_back(&self, job: &JobRecord) {
        let _turn = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = imagefmt::open_store(&job.store).and_then(|store| store.remove_note(&job.name));
        if let Err(error) = removed {
            tracing::warn!(job = job.name, "its copy stays in its store: {error}");
        }
    }

    /// A job that allows an action.
    pub(super) fn job_for(&self, inner: &Inner, name: &str, action: Action) -> Refused<JobRecord> {
        if inner.closing {
            return Err(Refusal {
                kind: ErrorKind::Unavailable,
                message: "smcd is shutting down: ask again when it has started".to_owned(),
            });
        }
        let job = self.job(inner, name)?;
        if !rules::allowed(job.status, action) {
            return Err(Refusal::state(name, job.status, action));
        }
        if let Some((_, Some(ending))) = inner.live.get(name) {
            return Err(Refusal::conflict(format!(
                "job {name} is being ended ({}): wait until that is done",
                ending.label()
            )));
        }
        Ok(job)
    }

    /// A job by its name.
    pub(super) fn job(&self, inner: &Inner, name: &str) -> Refused<JobRecord> {
        let known = || Refusal::no_job(name, inner.jobs.keys());
        inner.jobs.get(name).cloned().ok_or_else(known)
    }

    /// Forgets a job.
    pub(super) fn forget(&self, inner: &mut Inner, name: &str) -> anyhow::Result<()> {
        inner
            .state
            .remove(name)
            .with_context(|| format!("forget job {name}"))?;
        inner.jobs.remove(name);
        self.changed.notify_all();
        Ok(())
    }

    /// Runs of a job, newest first.
    pub fn runs(&self, name: &str, limit: u32) -> Refused<Vec<RunView>> {
        let inner = self.lock();
        self.job(&inner, name)?;
        inner
            .state
            .runs(name, limit)
            .map_err(|error| Refusal::failed(&error))
    }
}

impl Inner {
    /// One run.
    pub fn run(&self, job: &str, number: u64) -> anyhow::Result<Option<RunView>> {
        self.state.run(job, number)
    }

    /// The newest runs.
    pub fn runs(&self, job: &str, limit: u32) -> Vec<RunView> {
        self.state.runs(job, limit).unwrap_or_else(|error| {
            tracing::error!(job, "its runs cannot be read: {error:#}");
            Vec::new()
        })
    }

    /// Remembers that jobs have a store.
    pub fn know_store(&mut self, store: &Path) {
        if let Err(error) = self.known.add(store) {
            tracing::warn!("the list of stores cannot be kept: {error:#}");
        }
    }

    /// All stores that jobs ever had.
    pub fn stores(&self) -> &[PathBuf] {
        self.known.all()
    }
}
