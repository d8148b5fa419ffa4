//! Post hooks that a run owes: they run whatever happens to the run, smcd or the machine.
//!
//! A job's record says that it owes them from before the first pre hook starts until the last post hook has ended. Whoever
//! finds such a job without a run runs them: when smcd starts, before any store is asked, and every minute.

use super::background::Task;
use super::hooks::{self, HookEnv, Stage};
use super::manager::Manager;
use crate::job::JobRecord;
use api::RunOutcome;
use std::cell::Cell;
use std::sync::Arc;

impl Manager {
    /// Runs the post hooks that a job without a run owes, in the background.
    pub(super) fn release_in_background(self: &Arc<Self>, job: &JobRecord) {
        if job.hooks_owed.is_none() || self.live.contains(&job.name) {
            return;
        }
        let job = job.clone();
        self.in_background(Task::Release(job.name.clone()), move |manager| {
            manager.release(&job);
        });
    }

    /// Runs the post hooks that an interrupted run of the job owes: whatever the pre hooks have stopped goes on.
    pub(super) fn release(self: &Arc<Self>, job: &JobRecord) {
        // The caller may have looked some time ago.
        let owed = self.table.job(&job.name).ok().and_then(|now| now.hooks_owed);
        let Some(run) = owed.filter(|owed| Some(*owed) == job.hooks_owed) else {
            return;
        };
        tracing::info!(
            job = job.name,
            run,
            "running the post hooks of a run that was interrupted"
        );
        let env = HookEnv {
            run,
            outcome: RunOutcome::Interrupted.to_string(),
            image: String::new(),
        };
        if let Some(warning) = self.run_post_hooks(job, &env) {
            tracing::warn!(job = job.name, "{warning}");
            let saved = self.table.update(&job.name, |job| {
                job.warnings.push(warning);
                Ok(None)
            });
            if let Err(error) = saved {
                tracing::error!(job = job.name, "{error}");
            }
        }
        // Else they would run once more, should the state be lost.
        self.queue_note(&job.store, &job.name);
    }

    /// Runs the post hooks of a run; the job owes them no longer, unless the end of the daemon cut them short. Returns what
    /// went wrong.
    pub(super) fn run_post_hooks(&self, job: &JobRecord, env: &HookEnv) -> Option<String> {
        let cut_short = Cell::new(false);
        let ends = || {
            let ends = self.table.lock().is_closed();
            cut_short.set(cut_short.get() || ends);
            ends
        };
        let done = hooks::run(Stage::Post, &self.config.hooks_dir, job, env, &ends);
        if !cut_short.get() {
            let paid = self.table.update(&job.name, |job| {
                job.hooks_owed = job.hooks_owed.filter(|owed| *owed != env.run);
                Ok(None)
            });
            if let Err(error) = paid {
                tracing::error!(job = job.name, "its post hooks will run again: {error}");
            }
        }
        done.err().map(|error| format!("{error:#}"))
    }
}
