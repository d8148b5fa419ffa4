//! What people ask of jobs that exist.

use super::images::image_of;
use super::manager::Manager;
use super::outcome::finish;
use crate::job::{self, Ending, JobRecord, Refusal, Refused};
use crate::stores::ACTION_PATIENCE;
use api::{Action, CompleteJob, ModifyJob, RunType, Status};
use imagefmt::Manifest;
use std::sync::Arc;
use std::time::Instant;

impl Manager {
    /// Begins a job, or goes on after a stop or an error.
    pub fn start(self: &Arc<Self>, name: &str) -> Refused<()> {
        self.begin(name, Action::Start, RunType::Manual, |_| ())
    }

    /// An incremental sync now.
    pub fn sync(self: &Arc<Self>, name: &str) -> Refused<()> {
        self.begin(name, Action::Sync, RunType::Manual, |_| ())
    }

    /// What the schedule does, with the same rules as what people ask for.
    pub(super) fn begin_by_schedule(self: &Arc<Self>, name: &str, action: Action) -> Refused<()> {
        self.begin(name, action, RunType::Schedule, |_| ())
    }

    fn begin(
        self: &Arc<Self>,
        name: &str,
        action: Action,
        run_type: RunType,
        change: impl FnOnce(&mut JobRecord),
    ) -> Refused<()> {
        let made = self.made_before(name, action);
        let mut table = self.table.lock();
        let job = self.job_for(&table, name, action)?;
        let of_run = job.run.as_ref().and_then(|run| run.image);
        let launched = match made.filter(|made| Some(made.sequence) == of_run) {
            Some(manifest) => self.conclude_late(&mut table, name, manifest),
            None => self.launch(&mut table, name, run_type, change),
        };
        launched.map_err(|error| Refusal::failed(&error))?;
        let store = job.store;
        self.queue_note(&store, name);
        Ok(())
    }

    /// The image that an interrupted run had made while its store could not be read: `start` need not make it again.
    /// The store is asked without the mutex.
    fn made_before(&self, name: &str, action: Action) -> Option<Manifest> {
        if action != Action::Start {
            return None;
        }
        let job = self.table.job(name).ok()?;
        job.run.as_ref()?.image?;
        let path = job.store.clone();
        let asked = self.stores.begin(&path, move |store| image_of(store, &job));
        // A store that cannot be read fails the sync, which says so.
        asked.wait(ACTION_PATIENCE).ok().flatten()
    }

    /// Finishes a job, after a last sync if asked for.
    pub fn complete(self: &Arc<Self>, name: &str, request: &CompleteJob) -> Refused<()> {
        if request.last_sync {
            return self.begin(name, Action::Complete, RunType::Manual, |job| {
                job.completing = true
            });
        }
        self.change(name, Action::Complete, |job| {
            finish(job);
            tracing::info!(job = job.name, "job is finished");
        })
    }

    /// Root has looked at a job that was found in a store: it is to be trusted.
    ///
    /// # Errors
    /// When the job's state does not allow it, or it cannot be saved.
    pub fn confirm(self: &Arc<Self>, name: &str) -> Refused<()> {
        self.change(name, Action::Confirm, |job| {
            job.unconfirmed = false;
            tracing::info!(job = job.name, "job is confirmed");
        })
    }

    /// Stops syncing. A sync that runs keeps what it has stored, and is over some time after this.
    pub fn stop(self: &Arc<Self>, name: &str) -> Refused<()> {
        if self.end_run(name, Action::Stop, Ending::Stop)? {
            return Ok(());
        }
        self.change(name, Action::Stop, |job| {
            job.status = Status::Stopped;
            job.next_sync = None;
        })
    }

    /// Gives a job up. What a sync stored that did not become an image is dropped.
    pub fn cancel(self: &Arc<Self>, name: &str) -> Refused<()> {
        if self.end_run(name, Action::Cancel, Ending::Cancel)? {
            return Ok(());
        }
        self.change(name, Action::Cancel, |job| {
            job.status = Status::Canceled;
            job.next_sync = None;
        })?;
        let job = self.table.job(name)?;
        let (manager, path) = (self.clone(), job.store.clone());
        let discarded = self.stores.run(&path, move || {
            manager.discard(&job);
            Ok(())
        });
        if let Err(error) = discarded.wait(ACTION_PATIENCE) {
            tracing::warn!(
                job = name,
                "what its last sync stored is not discarded yet: {}",
                error.full_message()
            );
        }
        Ok(())
    }

    /// Asks a running sync to end; says whether there was one.
    fn end_run(self: &Arc<Self>, name: &str, action: Action, ending: Ending) -> Refused<bool> {
        let mut table = self.table.lock();
        self.job_for(&table, name, action)?;
        if !self.live.contains(name) {
            return Ok(false);
        }
        // Saved before it is answered: it counts after a kill too.
        table.update(name, |job| {
            if let Some(run) = &mut job.run {
                run.ending = Some(ending);
            }
            Ok(None)
        })?;
        self.live.ask(name, ending);
        tracing::info!(job = name, "the running sync is ending: {}", ending.label());
        Ok(true)
    }

    /// Changes a job that no sync of runs.
    fn change(
        self: &Arc<Self>,
        name: &str,
        action: Action,
        change: impl FnOnce(&mut JobRecord),
    ) -> Refused<()> {
        let mut table = self.table.lock();
        self.job_for(&table, name, action)?;
        if self.live.contains(name) {
            return Err(Refusal::conflict(format!(
                "a sync of job {name} has just started: repeat the request"
            )));
        }
        let job = table.update(name, |job| {
            change(job);
            Ok(None)
        })?;
        self.queue_note(&job.store, name);
        Ok(())
    }

    /// Changes parameters; a new bandwidth limit reaches a sync that runs.
    pub fn modify(self: &Arc<Self>, name: &str, change: &ModifyJob) -> Refused<()> {
        let mut table = self.table.lock();
        table.job(name)?;
        if table.is_closing() {
            return Err(Refusal::shutting_down());
        }
        let changed = table.update(name, |job| {
            *job = job::modify(job, change, &self.config, &self.now())?;
            Ok(None)
        })?;
        if let Some((live, _)) = self.live.get(name) {
            live.control.pace().set_limit(changed.bandwidth_limit_bytes);
        }
        self.queue_note(&changed.store, name);
        Ok(())
    }

    /// Lets nothing begin any more, and asks what runs to keep what it has stored. What follows a sync that ends, its post
    /// hooks above all, has a little less time than the daemon.
    pub fn close(&self) {
        let mut table = self.table.lock();
        table.close(Instant::now() + self.config.stop_timeout.mul_f32(0.9));
        self.live.ask_all(Ending::Shutdown);
    }

    /// How many syncs still run.
    pub fn running(&self) -> usize {
        self.live.all().len()
    }
}
