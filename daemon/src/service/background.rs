//! Work beside actions and syncs that waits for a store or a disk: each piece once at a time, on a thread of its own.

use super::manager::Manager;
use std::path::PathBuf;
use std::sync::Arc;
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
            Self::Refresh(_) => "refresh".to_owned(),
            Self::Look => "look for jobs".to_owned(),
        }
    }
}

impl Manager {
    /// Does some work in the background, unless it is being done already. Takes the mutex for a moment.
    pub(super) fn in_background(
        self: &Arc<Self>,
        task: Task,
        work: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) {
        if !self.lock().background.insert(task.clone()) {
            return;
        }
        let begun = Begun {
            manager: self.clone(),
            task,
        };
        let thread = thread::Builder::new().name(begun.task.label());
        // Where no thread can be started, `begun` is dropped with the closure.
        if let Err(error) = thread.spawn(move || work(&begun.manager)) {
            tracing::error!("cannot start a thread: {error}");
        }
    }
}

/// A task that is being done; it is over when this is dropped, whatever happened.
struct Begun {
    manager: Arc<Manager>,
    task: Task,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.manager.lock().background.remove(&self.task);
    }
}
