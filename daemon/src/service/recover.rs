//! Starting: every job is picked up where it was.

use super::live::run_begun;
use super::manager::{Inner, Manager};
use super::outcome::{Ended, conclude};
use super::runner::Work;
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::job::{Ending, JobRecord};
use crate::state::{FoundJob, KnownStores, Opened, State, Unreadable, rebuild};
use anyhow::Result;
use api::{RunView, Status};
use imagefmt::Manifest;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Opens the state, or finds it again in the stores, and resumes whatever was going on.
///
/// # Errors
/// When the state cannot be opened, read or written.
pub fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Manager>> {
    let now = clock.now();
    let (mut state, opened) = State::open(&config.state_dir)?;
    let found = match opened {
        Opened::Found => rebuild_unseen(&mut state, &now)?,
        Opened::New => rebuild_state(&mut state, &config, &now, None)?,
        Opened::Damaged(kept, why) => {
            let lost = format!(
                "the state database was damaged ({why}) and was moved to {}",
                kept.display()
            );
            rebuild_state(&mut state, &config, &now, Some(lost))?
        }
    };
    let Found {
        mut warnings,
        unreadable,
    } = found;
    let mut jobs = state.jobs()?;
    let elsewhere = state.is_of_another_host()?;
    for job in &mut jobs.readable {
        settle(&mut state, job, elsewhere, &now)?;
    }
    if elsewhere {
        warnings.push(
            "the state was written on another machine: its jobs are Stopped until you start them here"
                .to_owned(),
        );
        state.claim(&jobs.unreadable)?;
    }
    jobs.unreadable.extend(unreadable);
    warnings.extend(jobs.unreadable.iter().map(Unreadable::warning));
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let manager = Arc::new(Manager::new(config, clock, state, jobs, warnings));
    resume_all(&manager);
    Ok(manager)
}

/// Brings a job that was read into the present: its deadlines, and whose it is.
fn settle(state: &mut State, job: &mut JobRecord, elsewhere: bool, now: &Moment) -> Result<()> {
    let before = job.clone();
    anchor(job, now);
    // Its record may have been unreadable when the rest of the state became this machine's.
    let is_foreign = state.is_foreign(&job.name)?;
    if elsewhere || is_foreign {
        stop_foreign(job);
    }
    if *job != before
        && let Err(error) = state.save(job, None)
    {
        // A disk without room must not keep the schedule from going on.
        tracing::error!(job = job.name, "{error:#}");
        return Ok(());
    }
    if is_foreign {
        state.adopt(&job.name)?;
    }
    Ok(())
}

/// What looking through stores found beside jobs.
#[derive(Debug, Default)]
struct Found {
    warnings: Vec<String>,
    unreadable: Vec<Unreadable>,
}

/// A job of another machine, or of this one before it was migrated, does nothing until somebody says so.
fn stop_foreign(job: &mut JobRecord) {
    let acts = job.status == Status::Ready && job.start_at.is_some()
        || matches!(job.status, Status::Running | Status::Waiting);
    if acts {
        job.status = Status::Stopped;
        job.next_sync = None;
        job.start_at = None;
        job.run = None;
        job.warnings
            .push("this job was created on another machine: start it if it should continue here".to_owned());
    }
}

/// Stores that could not be looked through when the state was lost may be there now.
fn rebuild_unseen(state: &mut State, now: &Moment) -> Result<Found> {
    let unseen = state.unseen()?;
    if unseen.is_empty() {
        return Ok(Found::default());
    }
    let rebuilt = rebuild(unseen.iter(), now);
    let jobs = state.jobs()?;
    let known: BTreeSet<&String> = jobs
        .readable
        .iter()
        .map(|job| &job.name)
        .chain(jobs.unreadable.iter().map(|job| &job.name))
        .collect();
    let is_new = |name: &String| !known.contains(name);
    let found: Vec<FoundJob> = rebuilt
        .jobs
        .into_iter()
        .filter(|found| is_new(&found.job.name))
        .collect();
    let mut warnings = rebuilt.warnings;
    if !found.is_empty() {
        warnings.push(rebuilt_notice(&found));
    }
    state.fill(&found, &rebuilt.unseen)?;
    let unreadable = rebuilt.unreadable.into_iter();
    Ok(Found {
        warnings,
        unreadable: unreadable.filter(|job| is_new(&job.name)).collect(),
    })
}

fn rebuilt_notice(found: &[FoundJob]) -> String {
    let names: Vec<&str> = found.iter().map(|found| found.job.name.as_str()).collect();
    format!(
        "the state of {} was restored from the stores: check it with `smcctl job show`",
        names.join(", ")
    )
}

/// Fills a new database with what the stores know.
fn rebuild_state(state: &mut State, config: &Config, now: &Moment, lost: Option<String>) -> Result<Found> {
    let known = KnownStores::open(&config.state_dir);
    let stores: BTreeSet<PathBuf> = std::iter::once(&config.store)
        .chain(&config.stores)
        .chain(known.all())
        .cloned()
        .collect();
    let rebuilt = rebuild(stores.iter(), now);
    let missed = |store: &PathBuf| known.all().contains(store) || config.stores.contains(store);
    let holds_unreadable = |store: &PathBuf| {
        let stores = rebuilt.unreadable.iter().map(|job| &job.store);
        stores.flatten().any(|other| other == store)
    };
    // A store that never was one is nothing lost; one that jobs had is.
    let mut warnings: Vec<String> = lost.into_iter().collect();
    for store in rebuilt
        .unseen
        .iter()
        .filter(|store| missed(store) && !holds_unreadable(store))
    {
        warnings.push(format!(
            "jobs had their store at {}, but there is no store now: mount it and restart smcd, which then looks again",
            store.display()
        ));
    }
    let unseen = rebuilt
        .unseen
        .iter()
        .filter(|store| missed(store) || holds_unreadable(store))
        .cloned()
        .collect();
    // All of it or nothing: a crash in between is as if it had not begun.
    state.fill(&rebuilt.jobs, &unseen)?;
    if !rebuilt.jobs.is_empty() {
        warnings.push(rebuilt_notice(&rebuilt.jobs));
    }
    warnings.extend(rebuilt.warnings);
    Ok(Found {
        warnings,
        unreadable: rebuilt.unreadable,
    })
}

/// What was set by the clocks of an earlier boot goes by those of this one from now on.
fn anchor(job: &mut JobRecord, now: &Moment) {
    // The wall clock of a new boot may be wrong by years: it must not end a job for good.
    job.expires = job.expires.anchored_by_measure(now);
    job.next_sync = job.next_sync.as_ref().map(|next| next.anchored(now));
}

fn resume_all(manager: &Arc<Manager>) {
    let jobs: Vec<JobRecord> = manager.lock().jobs.values().cloned().collect();
    for job in jobs {
        match job.status {
            Status::Running => {
                if let Err(error) = resume_running(manager, &job.name) {
                    // The scheduler tries again.
                    tracing::error!(job = job.name, "{error:#}");
                }
            }
            Status::Deleting => manager.purge_in_background(job),
            // The daemon may have ended before what was stored was dropped.
            Status::Canceled => super::deleting::discard_in_background(job),
            _ => {}
        }
    }
}

/// A sync that was going on when the daemon ended: its image is there, it was to end, or it is gone on with.
pub fn resume_running(manager: &Arc<Manager>, name: &str) -> Result<()> {
    let job = manager.lock().jobs.get(name).cloned();
    let Some(job) = job.filter(|job| job.status == Status::Running) else {
        return Ok(());
    };
    // The store is asked without the mutex.
    let made = image_of(&job);
    let mut inner = manager.lock();
    if inner.closing || inner.live.contains_key(name) || inner.jobs.get(name) != Some(&job) {
        return Ok(());
    }
    let run = unfinished_run(&inner, &job);
    let ending = job.run.as_ref().and_then(|run| run.ending);
    match (made, ending) {
        (Ok(Some(manifest)), _) => {
            tracing::info!(
                job = name,
                image = job.label(manifest.sequence),
                "its image is complete"
            );
            manager.spawn(&mut inner, job, run, Work::Conclude(Box::new(manifest)))
        }
        (Err(error), _) => {
            // Whether the image was made shows when the store is there: `start` looks.
            let kept = job.run.clone();
            let reason = format!("the store cannot be read: {}", error.full_message());
            let mut job = interrupt(manager, &mut inner, job, run, &Ended::Failed(reason))?;
            job.run = kept;
            manager.save(&mut inner, job, None)
        }
        (Ok(None), Some(ending @ (Ending::Stop | Ending::Cancel))) => {
            let job = interrupt(manager, &mut inner, job, run, &Ended::Asked(ending))?;
            if ending == Ending::Cancel {
                super::deleting::discard_in_background(job);
            }
            Ok(())
        }
        (Ok(None), _) => {
            let run_type = run.run_type;
            interrupt(
                manager,
                &mut inner,
                job.clone(),
                run,
                &Ended::Asked(Ending::Shutdown),
            )?;
            tracing::info!(job = name, "sync was interrupted; resuming it");
            manager.launch(&mut inner, job, run_type)
        }
    }
}

/// Writes down what became of a run that has no thread; returns the job as it is then.
pub fn interrupt(
    manager: &Manager,
    inner: &mut Inner,
    job: JobRecord,
    mut run: RunView,
    ended: &Ended,
) -> Result<JobRecord> {
    let now = manager.now();
    run.outcome = ended.outcome();
    run.finished = Some(now.wall);
    run.error = match ended {
        Ended::Failed(reason) => Some(reason.clone()),
        Ended::Asked(Ending::Shutdown) => {
            Some("smcd ended during the run; the next run resumed it".to_owned())
        }
        _ => None,
    };
    let job = conclude(job, ended, &now);
    manager.save(inner, job.clone(), Some(&run))?;
    Ok(job)
}

/// The run as it was begun. One that cannot be read must not keep its job from going on.
pub fn unfinished_run(inner: &Inner, job: &JobRecord) -> RunView {
    let number = job.run.as_ref().map_or(job.runs, |run| run.number);
    let run_type = job.run.as_ref().map_or(api::RunType::Manual, |run| run.run_type);
    let known = inner.run(&job.name, number).unwrap_or_else(|error| {
        tracing::warn!(
            job = job.name,
            run = number,
            "the record of the run cannot be read: {error:#}"
        );
        None
    });
    known.unwrap_or_else(|| run_begun(number, run_type, job.created))
}

/// The image that an interrupted run made, if it came so far.
pub fn image_of(job: &JobRecord) -> imagefmt::Result<Option<Manifest>> {
    let Some(sequence) = job.run.as_ref().and_then(|run| run.image) else {
        return Ok(None);
    };
    let store = imagefmt::open_store(&job.store)?;
    let images = store.images_of(&job.name)?;
    let image = images.and_then(|images| images.get(sequence));
    image
        .map(|image| store.manifest(&image).map(Arc::unwrap_or_clone))
        .transpose()
}
