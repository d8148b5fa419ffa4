//! Work beside actions and syncs that waits for a store or a disk: each piece once at a time, on a thread of its own.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// A piece of work.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Deletes images of the job of this name.
    Delete(String),
    /// Discards what an unfinished sync of the job of this name stored.
    Discard(String),
    /// Resumes the sync of the job of this name.
    Resume(String),
    /// Asks a store which images its jobs have.
    Refresh(PathBuf),
    /// Runs the post hooks that the job of this name owes.
    Release(String),
    /// Lets go of the disks that the job of this name tracked.
    Unwatch(String),
    /// Checks images: one job at a time.
    Check,
    /// Looks at the tracker.
    Tracker,
    /// Looks for lost jobs in their stores.
    Look,
}

impl Task {
    /// The name of its thread, of which the kernel shows 15 letters.
    fn label(&self) -> String {
        match self {
            Self::Delete(job) => format!("delete {job}"),
            Self::Discard(job) => format!("discard {job}"),
            Self::Resume(job) => format!("resume {job}"),
            Self::Release(job) => format!("hooks {job}"),
            Self::Refresh(_) => "refresh".to_owned(),
            Self::Unwatch(job) => format!("untrack {job}"),
            Self::Check => "check".to_owned(),
            Self::Tracker => "tracker".to_owned(),
            Self::Look => "look for jobs".to_owned(),
        }
    }
}

/// What threads beside syncs are doing.
#[derive(Debug, Default)]
pub struct Background {
    tasks: Mutex<BTreeSet<Task>>,
}

impl Background {
    /// Whether nothing is being done.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.tasks().is_empty()
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeSet<Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does some work on a thread of its own, unless it is being done already.
    pub fn begin(self: &Arc<Self>, task: Task, work: impl FnOnce() + Send + 'static) {
        if !self.tasks().insert(task.clone()) {
            return;
        }
        let thread = thread::Builder::new().name(task.label());
        let begun = Begun {
            background: self.clone(),
            task,
        };
        let run = move || {
            let _begun = begun;
            work();
        };
        // Where no thread can be started, `begun` is dropped with the closure.
        if let Err(error) = thread.spawn(run) {
            tracing::error!("cannot start a thread: {error}");
        }
    }
}

/// A task that is being done; it is over when this is dropped, whatever happened.
struct Begun {
    background: Arc<Background>,
    task: Task,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.background.tasks().remove(&self.task);
    }
}
