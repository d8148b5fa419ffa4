//! Post hooks that a run owes: they run whatever happens to the run, smcd or the machine.
//!
//! A job's record says that it owes them from before the first pre hook starts until the last post hook has ended. Whoever
//! finds such a job without a run runs them: when smcd starts, before any store is asked, and every minute.

use super::background::Task;
use super::hooks::{self, HookEnv, Stage};
use super::note_writer;
use super::parts::Parts;
use crate::job::JobRecord;
use api::RunOutcome;
use std::cell::Cell;
use std::sync::Arc;

/// Runs the post hooks that a job without a run owes, in the background.
pub fn release_in_background(parts: &Arc<Parts>, job: &JobRecord) {
    if job.hooks_owed.is_none() || parts.live.contains(&job.name) {
        return;
    }
    let job = job.clone();
    parts.in_background(Task::Release(job.name.clone()), move |parts| {
        release(parts, &job);
    });
}

/// Runs the post hooks that an interrupted run of the job owes: whatever the pre hooks have stopped goes on.
pub fn release(parts: &Arc<Parts>, job: &JobRecord) {
    // The caller may have looked some time ago.
    let owed = parts.table.job(&job.name).ok().and_then(|now| now.hooks_owed);
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
    if let Some(warning) = run_post_hooks(parts, job, &env) {
        tracing::warn!(job = job.name, "{warning}");
        let saved = parts.table.update(&job.name, |job| {
            job.warnings.push(warning);
            Ok(None)
        });
        if let Err(error) = saved {
            tracing::error!(job = job.name, "{error}");
        }
    }
    // Else they would run once more, should the state be lost.
    note_writer::queue(parts, &job.store, &job.name);
}

/// Runs the post hooks of a run; the job owes them no longer, unless the end of the daemon cut them short. Returns what
/// went wrong.
pub fn run_post_hooks(parts: &Parts, job: &JobRecord, env: &HookEnv) -> Option<String> {
    let cut_short = Cell::new(false);
    let ends = || {
        let ends = parts.table.lock().is_closed();
        cut_short.set(cut_short.get() || ends);
        ends
    };
    let done = hooks::run(Stage::Post, &parts.config.hooks_dir, job, env, &ends);
    if !cut_short.get() {
        pay(parts, &job.name, env.run);
    }
    done.err().map(|error| format!("{error:#}"))
}

/// The job owes the post hooks of a run no longer.
fn pay(parts: &Parts, name: &str, run: u64) {
    let paid = |job: &mut JobRecord| job.hooks_owed = job.hooks_owed.filter(|owed| *owed != run);
    let mut table = parts.table.lock();
    let saved = table.update(name, |job| {
        paid(job);
        Ok(None)
    });
    if let Err(error) = saved {
        tracing::error!(
            job = name,
            "its post hooks will run again if smcd ends before this is saved: {error}"
        );
        table.update_unsaved(name, None, paid);
    }
}
