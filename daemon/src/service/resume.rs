//! Resuming what a job was doing when the daemon, or the machine, ended.

use super::background::Task;
use super::manager::Manager;
use super::outcome::{Ended, Work, interrupt, unfinished_run};
use crate::job::{Ending, JobRecord};
use anyhow::Result;
use api::Status;
use std::sync::Arc;

impl Manager {
    /// Resumes, in the background, what a job was doing.
    pub(super) fn resume(self: &Arc<Self>, job: &JobRecord) {
        if job.status != Status::Running {
            self.release_in_background(job);
        }
        match job.status {
            Status::Running => self.resume_in_background(&job.name),
            Status::Deleting => self.purge_in_background(job.clone()),
            // The daemon may have ended before what was stored was discarded.
            Status::Canceled => self.discard_in_background(job.clone()),
            _ => {}
        }
    }

    /// Resumes a sync, unless it runs.
    pub(super) fn resume_in_background(self: &Arc<Self>, name: &str) {
        if self.live.contains(name) {
            return;
        }
        let job = name.to_owned();
        self.in_background(Task::Resume(job.clone()), move |manager| {
            if let Err(error) = resume_running(manager, &job) {
                // The scheduler tries again.
                tracing::error!(job, "{error:#}");
            }
        });
    }
}

/// A sync that was running when the daemon ended: its image exists, it was to end, or it is resumed.
fn resume_running(manager: &Arc<Manager>, name: &str) -> Result<()> {
    let running = || {
        let job = manager.table.job(name).ok();
        job.filter(|job| job.status == Status::Running)
    };
    let Some(job) = running() else { return Ok(()) };
    // Applications are released before anything else is waited for.
    manager.release(&job);
    let Some(job) = running() else { return Ok(()) };
    // The store is asked without the mutex.
    let made = manager.image_made_by_run(&job);
    let mut table = manager.table.lock();
    if table.is_closing() || manager.live.contains(name) || table.jobs().get(name) != Some(&job) {
        return Ok(());
    }
    let run = unfinished_run(&table, &job);
    let (ending, now) = (job.run.as_ref().and_then(|run| run.ending), manager.now());
    match (made, ending) {
        (Ok(Some(manifest)), _) => {
            tracing::info!(
                job = name,
                image = job.label(manifest.sequence),
                "its image is complete"
            );
            manager.spawn(&mut table, job, run, Work::Conclude(Box::new(manifest)))
        }
        (Err(error), _) => {
            // Whether the image was made shows when the store is there: `start` looks.
            let kept = job.run.clone();
            let reason = format!("the store cannot be read: {}", error.full_message());
            interrupt(&mut table, name, run, &Ended::Failed(reason), &now)?;
            table.update(name, |job| {
                job.run = kept;
                Ok(None)
            })?;
            Ok(())
        }
        (Ok(None), Some(ending @ (Ending::Stop | Ending::Cancel))) => {
            let job = interrupt(&mut table, name, run, &Ended::Asked(ending), &now)?;
            drop(table);
            if ending == Ending::Cancel {
                manager.discard_in_background(job);
            }
            Ok(())
        }
        (Ok(None), _) => {
            let run_type = run.run_type;
            interrupt(&mut table, name, run, &Ended::Asked(Ending::Shutdown), &now)?;
            tracing::info!(job = name, "sync was interrupted; resuming it");
            manager.launch(&mut table, name, run_type, |_| ())
        }
    }
}
