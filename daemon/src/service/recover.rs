//! Starting: every job is picked up where it was.

use super::live::run_begun;
use super::manager::{Inner, Manager};
use super::runner::Work;
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::job::JobRecord;
use crate::state::{KnownStores, Opened, State, rebuild};
use anyhow::{Context, Result};
use api::{RunOutcome, RunView, Status};
use imagefmt::Manifest;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Opens the state, or finds it again in the stores, and goes on with whatever was going on.
pub fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Manager>> {
    let now = clock.now();
    let (mut state, opened) = State::open(&config.state_dir)?;
    let warnings = match opened {
        Opened::Found => Vec::new(),
        Opened::New => find_again(&mut state, &config, &now, None)?,
        Opened::Damaged(kept, why) => {
            let lost = format!("the state was damaged ({why}) and is kept as {}", kept.display());
            find_again(&mut state, &config, &now, Some(lost))?
        }
    };
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let mut jobs = state.jobs()?;
    for job in &mut jobs {
        anchor(job, &now);
        state.save(job, None)?;
    }
    let manager = Arc::new(Manager::new(config, clock, state, jobs, warnings));
    go_on(&manager)?;
    Ok(manager)
}

/// Fills a new database with what the stores know.
fn find_again(state: &mut State, config: &Config, now: &Moment, lost: Option<String>) -> Result<Vec<String>> {
    let known = KnownStores::open(&config.state_dir);
    let stores: BTreeSet<PathBuf> = std::iter::once(&config.store)
        .chain(&config.stores)
        .chain(known.all())
        .cloned()
        .collect();
    let rebuilt = rebuild(stores.iter(), now);
    for note in &rebuilt.jobs {
        state.save(&note.job, None)?;
        for run in &note.runs {
            state.save(&note.job, Some(run))?;
        }
    }
    let mut warnings: Vec<String> = lost.into_iter().collect();
    if !rebuilt.jobs.is_empty() {
        let names: Vec<&str> = rebuilt.jobs.iter().map(|note| note.job.name.as_str()).collect();
        warnings.push(format!(
            "the state of {} was found again in the stores: check them with `smcctl job show`",
            names.join(", ")
        ));
    }
    warnings.extend(rebuilt.warnings);
    Ok(warnings)
}

/// What was set by the clocks of an earlier boot goes by those of this one from now on.
fn anchor(job: &mut JobRecord, now: &Moment) {
    job.expires = job.expires.anchored(now);
    job.next_sync = job.next_sync.as_ref().map(|next| next.anchored(now));
}

fn go_on(manager: &Arc<Manager>) -> Result<()> {
    let jobs: Vec<JobRecord> = manager.lock().jobs.values().cloned().collect();
    for job in jobs {
        match job.status {
            Status::Running => go_on_running(manager, job)?,
            Status::Deleting => manager.purge_in_background(job),
            // The daemon may have ended before what was stored was dropped.
            Status::Canceled => super::deleting::discard(&job),
            _ => {}
        }
    }
    Ok(())
}

/// A sync that was going on when the daemon ended: its image is there, or it is gone on with.
fn go_on_running(manager: &Arc<Manager>, job: JobRecord) -> Result<()> {
    let mut inner = manager.lock();
    let mut run = unfinished_run(&inner, &job)?;
    if let Some(manifest) = image_of(&job) {
        tracing::info!(
            job = job.name,
            image = job.label(manifest.sequence),
            "its image is complete"
        );
        return manager.spawn(&mut inner, job, run, Work::Conclude(Box::new(manifest)));
    }
    run.outcome = RunOutcome::Interrupted;
    run.finished = Some(manager.now().wall);
    run.error = Some("smcd ended in the middle; the next run went on with it".to_owned());
    manager.save(&mut inner, job.clone(), Some(&run))?;
    tracing::info!(
        job = job.name,
        run = run.number,
        "sync was interrupted; going on with it"
    );
    manager.launch(&mut inner, job, run.run_type)
}

fn unfinished_run(inner: &Inner, job: &JobRecord) -> Result<RunView> {
    let number = job.run.as_ref().map_or(job.runs, |run| run.number);
    let known = inner
        .run(&job.name, number)
        .with_context(|| format!("read run {number} of job {}", job.name))?;
    let run_type = job.run.as_ref().map_or(api::RunType::Manual, |run| run.run_type);
    Ok(known.unwrap_or_else(|| run_begun(number, run_type, job.created)))
}

/// The image that the interrupted run made, if it came so far.
fn image_of(job: &JobRecord) -> Option<Manifest> {
    let sequence = job.run.as_ref()?.image?;
    let store = imagefmt::open_store(&job.store).ok()?;
    let images = store.job(&job.name).ok()?;
    if !images.sequences.contains(&sequence) {
        return None;
    }
    store.manifest(&images.chain, sequence).ok()
}
