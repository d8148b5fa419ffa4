//! Resuming what a job was doing when the daemon, or the machine, ended.

use super::background::Task;
use super::deleting;
use super::images;
use super::outcome::{Ended, Work, interrupt, unfinished_run};
use super::owed;
use super::parts::Parts;
use super::runner;
use crate::job::{Ending, JobRecord};
use anyhow::Result;
use api::Status;
use std::sync::Arc;

/// Resumes, in the background, what a job was doing.
pub fn resume(parts: &Arc<Parts>, job: &JobRecord) {
    if job.status != Status::Running {
        owed::release_in_background(parts, job);
    }
    match job.status {
        Status::Running => resume_in_background(parts, &job.name),
        Status::Deleting => deleting::purge_in_background(parts, job.clone()),
        // The daemon may have ended before what was stored was discarded.
        Status::Canceled => deleting::discard_in_background(parts, job.clone()),
        _ => {}
    }
}

/// Resumes a sync, unless it runs.
pub fn resume_in_background(parts: &Arc<Parts>, name: &str) {
    if parts.live.contains(name) {
        return;
    }
    let job = name.to_owned();
    parts.in_background(Task::Resume(job.clone()), move |parts| {
        if let Err(error) = resume_running(parts, &job) {
            // The scheduler tries again.
            tracing::error!(job, "{error:#}");
        }
    });
}

/// A sync that was running when the daemon ended: its image exists, it was to end, or it is resumed.
fn resume_running(parts: &Arc<Parts>, name: &str) -> Result<()> {
    let running = || {
        let job = parts.table.job(name).ok();
        job.filter(|job| job.status == Status::Running)
    };
    let Some(job) = running() else { return Ok(()) };
    // Applications are released before anything else is waited for.
    owed::release(parts, &job);
    let Some(job) = running() else { return Ok(()) };
    // The store is asked without the mutex.
    let made = images::image_made_by_run(parts, &job);
    let mut table = parts.table.lock();
    if table.is_closing() || parts.live.contains(name) || table.jobs().get(name) != Some(&job) {
        return Ok(());
    }
    let run = unfinished_run(&table, &job);
    let (ending, now) = (job.run.as_ref().and_then(|run| run.ending), parts.now());
    match (made, ending) {
        (Ok(Some(manifest)), _) => {
            tracing::info!(
                job = name,
                image = job.label(manifest.sequence),
                "its image is complete"
            );
            runner::spawn(parts, &mut table, job, run, Work::Conclude(Box::new(manifest)))
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
                deleting::discard_in_background(parts, job);
            }
            Ok(())
        }
        (Ok(None), _) => {
            let run_type = run.run_type;
            interrupt(&mut table, name, run, &Ended::Asked(Ending::Shutdown), &now)?;
            tracing::info!(job = name, "sync was interrupted; resuming it");
            runner::launch(parts, &mut table, name, run_type, |_| ())
        }
    }
}
