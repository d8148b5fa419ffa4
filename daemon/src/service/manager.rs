//! The one who knows all jobs: in memory, and written down before anybody is told.

use super::background::Task;
use super::events::{Event, Events, Listener};
use super::live::LiveRun;
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::job::{JobRecord, Refusal, Refused};
use crate::state::{FoundJob, Jobs, KnownStores, NOTE_RUNS, Runs, State, StoredNote, Unreadable};
use crate::stores::Stores;
use anyhow::Context;
use api::{Action, RunView, rules};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// All jobs of this machine.
#[derive(Debug)]
pub struct Manager {
    pub(super) config: Config,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) started: Timestamp,
    inner: Mutex<Inner>,
    /// Jobs whose copy in their store is to be written, by store; a store that is here has a writer.
    notes: Mutex<BTreeMap<PathBuf, BTreeSet<String>>>,
    /// Tells whoever listens what changed.
    pub(super) events: Events,
    /// The stores of all jobs.
    pub(super) stores: Arc<Stores>,
}

/// What the mutex guards.
#[derive(Debug)]
pub(super) struct Inner {
    state: State,
    known: KnownStores,
    pub jobs: BTreeMap<String, JobRecord>,
    /// Jobs whose record cannot be read: nothing is done for them, and what is theirs stays theirs.
    pub unreadable: BTreeMap<String, Unreadable>,
    pub live: BTreeMap<String, (Arc<LiveRun>, Option<crate::job::Ending>)>,
    /// What threads beside syncs are doing.
    pub background: BTreeSet<Task>,
    /// The daemon ends: nothing begins any more.
    pub closing: bool,
    /// What the user should know of the daemon itself.
    pub warnings: Vec<String>,
    /// What the last look for lost jobs in stores found in the way.
    pub look_warnings: Vec<String>,
}

impl Manager {
    /// Takes over what was read from the state.
    pub(super) fn new(
        config: Config,
        clock: Arc<dyn Clock>,
        stores: Arc<Stores>,
        state: State,
        jobs: Jobs,
        warnings: Vec<String>,
    ) -> Self {
        let known = KnownStores::open(&config.state_dir);
        let named = |job: Unreadable| (job.name.clone(), job);
        Self {
            started: clock.now().wall,
            inner: Mutex::new(Inner {
                state,
                known,
                jobs: jobs
                    .readable
                    .into_iter()
                    .map(|job| (job.name.clone(), job))
                    .collect(),
                unreadable: jobs.unreadable.into_iter().map(named).collect(),
                live: BTreeMap::new(),
                background: BTreeSet::new(),
                closing: false,
                warnings,
                look_warnings: Vec::new(),
            }),
            notes: Mutex::default(),
            events: Events::default(),
            stores,
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

    /// Listens to what changes from now on.
    pub fn listen(&self) -> Listener {
        self.events.listen()
    }

    /// How long the clock lets the scheduler sleep.
    pub fn poll_interval(&self) -> Duration {
        self.clock.poll_interval()
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
            .with_context(|| format!("save job {}", job.name))?;
        let event = Event::Saved(job.name.clone());
        inner.jobs.insert(job.name.clone(), job);
        self.events.send(&event);
        Ok(())
    }

    /// Brings the copy of a job in its store up to date, in the background: a store that does not answer holds up
    /// nobody but the writer of its own notes. Each store has one at a time.
    pub(super) fn queue_note(self: &Arc<Self>, store: &Path, name: &str) {
        let mut waiting = self.notes();
        let is_busy = waiting.contains_key(store);
        waiting
            .entry(store.to_owned())
            .or_default()
            .insert(name.to_owned());
        if is_busy {
            return;
        }
        let (manager, path) = (self.clone(), store.to_owned());
        let thread = std::thread::Builder::new().name("notes".to_owned());
        if let Err(error) = thread.spawn(move || manager.write_notes(&path)) {
            tracing::warn!("cannot start a thread to write notes: {error}");
            waiting.remove(store);
        }
    }

    /// Writes notes until none is waiting.
    fn write_notes(&self, store: &Path) {
        loop {
            let next = {
                let mut waiting = self.notes();
                let next = waiting.get_mut(store).and_then(BTreeSet::pop_first);
                if next.is_none() {
                    waiting.remove(store);
                }
                next
            };
            let Some(name) = next else { return };
            if let Err(error) = self.write_note(store, &name) {
                tracing::warn!(
                    job = name,
                    "the copy of the job in its store could not be updated: {error:#}"
                );
            }
        }
    }

    /// As the job is now: a job that is gone, or lies in another store, has none. The note of a job whose record cannot
    /// be read is left as it is.
    fn write_note(&self, store: &Path, name: &str) -> anyhow::Result<()> {
        let note = {
            let inner = self.lock();
            if inner.unreadable.contains_key(name) {
                return Ok(());
            }
            match inner.jobs.get(name).filter(|job| job.store == store) {
                Some(_) => inner.state.note(name, NOTE_RUNS)?,
                None => None,
            }
        };
        let opened = self.stores.get(store)?;
        match note {
            Some(note) => {
                let before = opened.note::<StoredNote>(name).ok();
                opened.put_note(name, &note.replacing(before))?;
            }
            None => opened.remove_note(name)?,
        }
        Ok(())
    }

    fn notes(&self) -> MutexGuard<'_, BTreeMap<PathBuf, BTreeSet<String>>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job that allows an action.
    pub(super) fn job_for(&self, inner: &Inner, name: &str, action: Action) -> Refused<JobRecord> {
        if inner.closing {
            return Err(Refusal::shutting_down());
        }
        let job = self.job(inner, name)?;
        if !rules::allowed(job.status, action) {
            return Err(Refusal::state(name, job.status, action));
        }
        if let Some((_, Some(ending))) = inner.live.get(name) {
            return Err(Refusal::conflict(format!(
                "the sync of job {name} is ending ({}): wait until that is done",
                ending.label()
            )));
        }
        Ok(job)
    }

    /// A job by its name.
    pub(super) fn job(&self, inner: &Inner, name: &str) -> Refused<JobRecord> {
        if let Some(job) = inner.unreadable.get(name) {
            return Err(Refusal::unreadable(job.warning()));
        }
        let known = || Refusal::no_job(name, inner.jobs.keys());
        inner.jobs.get(name).cloned().ok_or_else(known)
    }

    /// Forgets a job.
    pub(super) fn forget(&self, inner: &mut Inner, name: &str) -> anyhow::Result<()> {
        inner
            .state
            .remove(name)
            .with_context(|| format!("delete job {name}"))?;
        inner.jobs.remove(name);
        inner.unreadable.remove(name);
        self.events.send(&Event::Removed(name.to_owned()));
        Ok(())
    }

    /// Runs of a job, newest first.
    pub fn runs(&self, name: &str, limit: u32) -> Refused<Vec<RunView>> {
        let inner = self.lock();
        self.job(&inner, name)?;
        let runs = inner
            .state
            .runs(name, limit)
            .map_err(|error| Refusal::failed(&error))?;
        for (number, reason) in &runs.unreadable {
            tracing::warn!(
                job = name,
                run = number,
                "the record of a run cannot be read: {reason}"
            );
        }
        Ok(runs.readable)
    }
}

impl Inner {
    /// Stores that are still to be looked through for lost jobs.
    pub fn unseen(&self) -> anyhow::Result<Vec<PathBuf>> {
        self.state.unseen()
    }

    /// Takes in jobs that were found in stores, and remembers which stores are still to be looked through.
    pub fn fill(&mut self, found: Vec<FoundJob>, unseen: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
        self.state.fill(&found, unseen)?;
        let jobs = found.into_iter().map(|found| (found.job.name.clone(), found.job));
        self.jobs.extend(jobs);
        Ok(())
    }

    /// One run.
    pub fn run(&self, job: &str, number: u64) -> anyhow::Result<Option<RunView>> {
        self.state.run(job, number)
    }

    /// The newest runs.
    pub fn runs(&self, job: &str, limit: u32) -> Runs {
        self.state.runs(job, limit).unwrap_or_else(|error| {
            tracing::error!(job, "the runs of the job cannot be read: {error:#}");
            Runs::default()
        })
    }

    /// Remembers that jobs have a store.
    pub fn remember_store(&mut self, store: &Path) {
        if let Err(error) = self.known.add(store) {
            tracing::warn!("the list of stores cannot be saved: {error:#}");
        }
    }

    /// All stores that jobs ever had.
    pub fn stores(&self) -> &[PathBuf] {
        self.known.all()
    }
}
