//! Thaw and post hooks that a run owes: they run whatever happens to the run, smcd or the machine.
//!
//! A job's record says that it owes its post hooks from before the first pre hook starts until the last post hook has ended, and
//! in between that it owes its thaw hooks, from before the first freeze hook starts until the last thaw hook has ended. Whoever
//! finds such a job without a run runs them: when smcd starts, before any store is asked, and every minute.

use super::background::Task;
use super::hooks::{self, HookEnv, Stage};
use super::note_writer;
use super::parts::Parts;
use crate::job::{JobRecord, Refused};
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
    note_writer::queue(parts, &job.place, &job.name);
}

/// Notes that a run owes its thaw hooks, before its first freeze hook starts.
///
/// # Errors
/// When it cannot be saved: no freeze hook is to run then.
pub fn owe_thaw(parts: &Parts, name: &str, run: u64) -> Refused<()> {
    parts.table.update(name, |job| {
        job.thaw_owed = Some(run);
        Ok(None)
    })?;
    Ok(())
}

/// Runs the thaw hooks of a run if it owes them. Returns what went wrong.
pub fn run_thaw_hooks(parts: &Parts, job: &JobRecord, env: &HookEnv) -> Option<String> {
    let now = parts.table.job(&job.name).ok()?;
    if now.thaw_owed != Some(env.run) {
        return None;
    }
    run_owed(Stage::Thaw, parts, job, env)
}

/// Runs the post hooks of a run, after its thaw hooks where it owes these too. Returns what went wrong.
pub fn run_post_hooks(parts: &Parts, job: &JobRecord, env: &HookEnv) -> Option<String> {
    let thaw = run_thaw_hooks(parts, job, env);
    let post = run_owed(Stage::Post, parts, job, env);
    let failures: Vec<String> = thaw.into_iter().chain(post).collect();
    (!failures.is_empty()).then(|| failures.join("; "))
}

/// Runs the hooks of a stage; the job owes them no longer, unless the end of the daemon cut them short. Returns what went
/// wrong.
fn run_owed(stage: Stage, parts: &Parts, job: &JobRecord, env: &HookEnv) -> Option<String> {
    let cut_short = Cell::new(false);
    let ends = || {
        let ends = parts.table.lock().is_closed();
        cut_short.set(cut_short.get() || ends);
        ends
    };
    let done = hooks::run(stage, &parts.config.hooks_dir, job, env, &ends);
    if !cut_short.get() {
        pay(stage, parts, &job.name, env.run);
    }
    done.err().map(|error| format!("{error:#}"))
}

/// The job owes the hooks of a stage of a run no longer.
fn pay(stage: Stage, parts: &Parts, name: &str, run: u64) {
    let paid = |job: &mut JobRecord| {
        let debt = match stage {
            Stage::Thaw => &mut job.thaw_owed,
            _ => &mut job.hooks_owed,
        };
        *debt = debt.filter(|owed| *owed != run);
    };
    let mut table = parts.table.lock();
    let saved = table.update(name, |job| {
        paid(job);
        Ok(None)
    });
    if let Err(error) = saved {
        tracing::error!(
            job = name,
            "its {} hooks will run again if smcd ends before this is saved: {error}",
            stage.label()
        );
        table.update_unsaved(name, None, paid);
    }
}
