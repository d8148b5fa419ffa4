//! The jobs of this machine: in memory, and in the database behind it, under one mutex.
//!
//! The holder of the table sees all jobs as they are, and changes one by [`Locked::update`], which saves the change before
//! anybody can see it. Nobody holds the table while it waits for a store or a disk that is being read.

use super::events::{Event, Events, Listener};
use crate::job::{JobRecord, Refusal, Refused};
use crate::state::{FoundJob, Jobs, KnownStores, NOTE_RUNS, NoteKey, Runs, State, StoredNote, Unreadable};
use anyhow::Context;
use api::RunView;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// All jobs, and what the user should know of the daemon itself.
#[derive(Debug)]
pub struct JobTable {
    inner: Mutex<Inner>,
    events: Events,
}

#[derive(Debug)]
struct Inner {
    state: State,
    stores: KnownStores,
    jobs: BTreeMap<String, JobRecord>,
    /// Jobs whose record cannot be read: nothing is done for them, and what is theirs stays theirs.
    unreadable: BTreeMap<String, Unreadable>,
    /// The daemon ends: nothing begins any more, and post hooks have until then.
    closing: Option<Instant>,
    warnings: Vec<String>,
    /// What the last search for lost jobs in stores found in the way.
    search_warnings: Vec<String>,
    /// Why the state could not be written when that was last tried.
    write_error: Option<String>,
    /// Jobs that changed while it could not, and the runs that ended then: they are saved with the next change of their jobs.
    unsaved: BTreeMap<String, Vec<RunView>>,
}

/// The table while its mutex is held.
#[derive(Debug)]
pub struct Locked<'a> {
    inner: MutexGuard<'a, Inner>,
    events: &'a Events,
}

impl JobTable {
    /// Takes over what was read from the state.
    pub fn new(state: State, stores: KnownStores, jobs: Jobs, warnings: Vec<String>) -> Self {
        let readable = jobs.readable.into_iter().map(|job| (job.name.clone(), job));
        let unreadable = jobs.unreadable.into_iter().map(|job| (job.name.clone(), job));
        Self {
            inner: Mutex::new(Inner {
                state,
                stores,
                jobs: readable.collect(),
                unreadable: unreadable.collect(),
                closing: None,
                warnings,
                search_warnings: Vec::new(),
                write_error: None,
                unsaved: BTreeMap::new(),
            }),
            events: Events::default(),
        }
    }

    /// Holds the table.
    pub fn lock(&self) -> Locked<'_> {
        // What a panic could leave half done is saved or not: nothing in memory is ahead of the state.
        Locked {
            inner: self.inner.lock().unwrap_or_else(PoisonError::into_inner),
            events: &self.events,
        }
    }

    /// A job by its name, as it is now.
    ///
    /// # Errors
    /// When there is none, or its record cannot be read.
    pub fn job(&self, name: &str) -> Refused<JobRecord> {
        self.lock().job(name).cloned()
    }

    /// Changes one job: [`Locked::update`] where nothing else is to be looked at.
    ///
    /// # Errors
    /// As that one.
    pub fn update(
        &self,
        name: &str,
        change: impl FnOnce(&mut JobRecord) -> Refused<Option<RunView>>,
    ) -> Refused<JobRecord> {
        self.lock().update(name, change)
    }

    /// Listens to what changes from now on.
    pub fn listen(&self) -> Listener {
        self.events.listen()
    }

    /// Tells listeners that a sync of the job got further.
    pub fn progressed(&self, name: &str) {
        self.events.send(&Event::Progressed(name.to_owned()));
    }
}

impl Locked<'_> {
    /// All jobs whose record can be read, by name.
    pub fn jobs(&self) -> &BTreeMap<String, JobRecord> {
        &self.inner.jobs
    }

    /// All other jobs, by name.
    pub fn unreadable(&self) -> &BTreeMap<String, Unreadable> {
        &self.inner.unreadable
    }

    /// A job by its name.
    ///
    /// # Errors
    /// When there is none, or its record cannot be read.
    pub fn job(&self, name: &str) -> Refused<&JobRecord> {
        if let Some(job) = self.inner.unreadable.get(name) {
            return Err(Refusal::unreadable(job.warning()));
        }
        let unknown = || Refusal::no_job(name, self.inner.jobs.keys());
        self.inner.jobs.get(name).ok_or_else(unknown)
    }

    /// Changes a job, and saves it, and a run of it with it, before anybody can see the change. Returns the job as it is
    /// then.
    ///
    /// # Errors
    /// When there is no such job, `change` refuses, or it cannot be saved: nothing has changed then.
    pub fn update(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut JobRecord) -> Refused<Option<RunView>>,
    ) -> Refused<JobRecord> {
        let mut job = self.job(name)?.clone();
        let run = change(&mut job)?;
        if run.is_some() || self.inner.jobs.get(name) != Some(&job) {
            self.save(job.clone(), run.as_ref())?;
        }
        Ok(job)
    }

    /// Adds a job that the caller has checked.
    ///
    /// # Errors
    /// When it cannot be saved.
    pub fn insert(&mut self, job: JobRecord) -> Refused<()> {
        self.save(job, None)
    }

    fn save(&mut self, job: JobRecord, run: Option<&RunView>) -> Refused<()> {
        let inner = &mut *self.inner;
        let unsaved = inner.unsaved.get(&job.name).into_iter().flatten();
        let saved = inner.state.save(&job, unsaved.chain(run));
        self.note_write(saved)
            .with_context(|| format!("save job {}", job.name))
            .map_err(|error| Refusal::failed(&error))?;
        self.inner.unsaved.remove(&job.name);
        self.show(job);
        Ok(())
    }

    /// Remembers whether the state can be written: users are told while it cannot.
    fn note_write(&mut self, written: anyhow::Result<()>) -> anyhow::Result<()> {
        self.inner.write_error = written.as_ref().err().map(|error| format!("{error:#}"));
        written
    }

    /// Tries again, if the state could not be written, and saves what waits for that.
    ///
    /// # Errors
    /// When it still cannot be written.
    pub fn write_again(&mut self) -> anyhow::Result<()> {
        if self.inner.write_error.is_none() {
            return Ok(());
        }
        let written = self.inner.state.try_write();
        self.note_write(written)?;
        tracing::info!("the state can be written again");
        let names = self.inner.unsaved.keys();
        let jobs = names.filter_map(|name| self.inner.jobs.get(name).cloned());
        let jobs: Vec<JobRecord> = jobs.collect();
        for job in jobs {
            self.save(job, None)?;
        }
        Ok(())
    }

    /// What users should know of a state that cannot be written.
    pub fn write_warning(&self) -> Option<String> {
        let error = self.inner.write_error.as_ref()?;
        Some(format!(
            "no sync starts and no change is accepted, because the state cannot be written: {error}. smcd tries again every \
             minute"
        ))
    }

    fn show(&mut self, job: JobRecord) {
        let event = Event::Saved(job.name.clone());
        self.inner.jobs.insert(job.name.clone(), job);
        self.events.send(&event);
    }

    /// Changes a job in memory alone, when something has ended and the state cannot be written. The change, and the run that
    /// has ended, are saved with the job's next change. A daemon that starts before that finds the run going on, looks whether
    /// its image is there, and runs the post hooks.
    pub fn update_unsaved(&mut self, name: &str, run: Option<RunView>, change: impl FnOnce(&mut JobRecord)) {
        if let Some(mut job) = self.inner.jobs.get(name).cloned() {
            change(&mut job);
            self.inner.unsaved.entry(name.to_owned()).or_default().extend(run);
            self.show(job);
        }
    }

    /// Forgets a job, whether its record can be read or not.
    ///
    /// # Errors
    /// When that cannot be saved.
    pub fn remove(&mut self, name: &str) -> Refused<()> {
        let removed = self.inner.state.remove(name);
        self.note_write(removed)
            .with_context(|| format!("delete job {name}"))
            .map_err(|error| Refusal::failed(&error))?;
        self.inner.jobs.remove(name);
        self.inner.unreadable.remove(name);
        self.inner.unsaved.remove(name);
        self.events.send(&Event::Removed(name.to_owned()));
        Ok(())
    }

    /// Takes in jobs that were found in stores, and remembers which stores are still to be searched: all of it or nothing.
    ///
    /// # Errors
    /// When that cannot be saved.
    pub fn take_in(
        &mut self,
        found: Vec<FoundJob>,
        unreadable: Vec<Unreadable>,
        unseen: &BTreeSet<PathBuf>,
    ) -> anyhow::Result<()> {
        self.inner.state.fill(&found, unseen)?;
        found.into_iter().for_each(|found| self.show(found.job));
        for job in unreadable {
            self.inner.unreadable.entry(job.name.clone()).or_insert(job);
        }
        Ok(())
    }

    /// Whether a name is a job's, whose record can be read or not.
    pub fn is_known(&self, name: &str) -> bool {
        self.inner.jobs.contains_key(name) || self.inner.unreadable.contains_key(name)
    }

    /// Whether the daemon ends: nothing begins any more then.
    pub fn is_closing(&self) -> bool {
        self.inner.closing.is_some()
    }

    /// Nothing begins any more; post hooks have until `hooks_end`.
    pub fn close(&mut self, hooks_end: Instant) {
        self.inner.closing.get_or_insert(hooks_end);
    }

    /// Whether the daemon ends, and no hook may run any more.
    pub fn is_closed(&self) -> bool {
        self.inner.closing.is_some_and(|end| Instant::now() >= end)
    }

    /// What the user should know of the daemon itself.
    pub fn warnings(&self) -> Vec<String> {
        let unreadable: Vec<String> = self.inner.unreadable.values().map(Unreadable::warning).collect();
        let write: Vec<String> = self.write_warning().into_iter().collect();
        [
            &self.inner.warnings[..],
            &self.inner.search_warnings,
            &unreadable,
            &write,
        ]
        .concat()
    }

    /// Adds to what the user should know until the daemon starts again.
    pub fn warn(&mut self, warning: String) {
        tracing::warn!("{warning}");
        self.inner.warnings.push(warning);
    }

    /// What the last search for lost jobs found in the way, in place of what the one before it found.
    pub fn set_search_warnings(&mut self, warnings: Vec<String>) {
        if self.inner.search_warnings != warnings {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            self.inner.search_warnings = warnings;
        }
    }

    /// Stores that are still to be searched for lost jobs.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn unseen(&self) -> anyhow::Result<Vec<PathBuf>> {
        self.inner.state.unseen()
    }

    /// What a store is to keep of a job of its own.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn note(&self, store: &Path, name: &str) -> anyhow::Result<Option<StoredNote>> {
        match self.inner.jobs.get(name) {
            Some(job) if job.place.store() == Some(store) => self.inner.state.note(name, NOTE_RUNS),
            _ => Ok(None),
        }
    }

    /// The key that seals notes.
    pub fn note_key(&self) -> &NoteKey {
        self.inner.state.note_key()
    }

    /// One run.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub fn run(&self, job: &str, number: u64) -> anyhow::Result<Option<RunView>> {
        self.inner.state.run(job, number)
    }

    /// The newest runs.
    ///
    /// # Errors
    /// When the state cannot be read. A record that cannot be read is no error.
    pub fn runs(&self, job: &str, limit: u32) -> anyhow::Result<Runs> {
        self.inner.state.runs(job, limit)
    }

    /// Remembers that jobs have a store.
    pub fn remember_store(&mut self, store: &Path) {
        if let Err(error) = self.inner.stores.add(store) {
            tracing::warn!("the list of stores cannot be saved: {error:#}");
        }
    }

    /// All stores that jobs ever had.
    pub fn stores(&self) -> &[PathBuf] {
        self.inner.stores.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, HandClock};
    use crate::config::Config;
    use crate::engine::Place;
    use crate::job::{ResolvedInput, new_record};
    use crate::service::live::run_begun;
    use std::time::Duration;

    fn table(dir: &Path) -> JobTable {
        let (state, _) = State::open(dir).unwrap();
        let table = JobTable::new(state, KnownStores::open(dir), Jobs::default(), Vec::new());
        let request = api::CreateJob {
            name: "web01".to_owned(),
            ..Default::default()
        };
        let given = ResolvedInput {
            place: Place::Store("/s".into()),
            disks: Vec::new(),
        };
        let config = Config::load(None).unwrap();
        let job = new_record(&request, given, &config, &HandClock::new().now()).unwrap();
        table.lock().insert(job).unwrap();
        table
    }

    #[test]
    fn a_change_that_cannot_be_saved_is_seen_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(dir.path());
        let listener = table.listen();
        rusqlite::Connection::open(dir.path().join("state.db"))
            .unwrap()
            .execute_batch("DROP TABLE jobs")
            .unwrap();
        let refusal = table.update("web01", |job| {
            job.description = "new".to_owned();
            Ok(None)
        });
        assert_eq!(refusal.unwrap_err().kind, api::ErrorKind::Failed);
        assert_eq!(table.job("web01").unwrap().description, "");
        assert_eq!(listener.wait(Duration::ZERO), []);
    }

    #[test]
    fn a_run_that_ended_while_nothing_could_be_written_is_saved_when_it_can_be_again() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(dir.path());
        let database = rusqlite::Connection::open(dir.path().join("state.db")).unwrap();
        let rename = |from: &str, to: &str| {
            database
                .execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}"))
                .unwrap();
        };
        rename("runs", "away");
        let run = run_begun(1, api::RunType::Manual, jiff::Timestamp::UNIX_EPOCH);
        let change = |job: &mut JobRecord| job.runs = 1;
        let refused = table.update("web01", |job| {
            change(job);
            Ok(Some(run.clone()))
        });
        assert!(refused.is_err());
        let mut locked = table.lock();
        locked.update_unsaved("web01", Some(run.clone()), change);
        assert_eq!(locked.job("web01").unwrap().runs, 1);
        let warnings = locked.warnings().join(" ");
        assert!(warnings.contains("the state cannot be written"), "{warnings}");
        assert!(locked.write_again().is_err());

        rename("away", "runs");
        locked.write_again().unwrap();
        assert_eq!(locked.warnings(), Vec::<String>::new());
        assert_eq!(locked.runs("web01", 10).unwrap().readable, [run]);
        drop(locked);
        let (state, _) = State::open(dir.path()).unwrap();
        assert_eq!(state.jobs().unwrap().readable[0].runs, 1);
    }

    #[test]
    fn a_refused_change_and_one_that_changes_nothing_are_no_event() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(dir.path());
        let listener = table.listen();
        let refused = table.update("web01", |job| {
            job.description = "new".to_owned();
            Err(Refusal::invalid("no"))
        });
        assert!(refused.is_err());
        table.update("web01", |_| Ok(None)).unwrap();
        assert_eq!(listener.wait(Duration::ZERO), []);
        assert_eq!(table.job("web01").unwrap().description, "");
        assert!(table.update("db", |_| Ok(None)).is_err());
    }
}
