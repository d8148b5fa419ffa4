//! Looking for jobs in their stores, when the state was lost: in the background, and again every minute until every store
//! that jobs had was looked through.

use super::background::Task;
use super::parts::Parts;
use super::resume;
use super::table::Locked;
use crate::job::JobRecord;
use crate::state::{FoundJob, Rebuilt, rebuild};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Looks through stores that are still to be looked through.
pub fn look_for_jobs(parts: &Arc<Parts>) {
    let unseen = parts.table.lock().unseen();
    match unseen {
        Ok(unseen) if unseen.is_empty() => return,
        Ok(_) => {}
        Err(error) => return tracing::error!("{error:#}"),
    }
    parts.in_background(Task::Look, |parts| {
        if let Err(error) = look(parts) {
            tracing::error!("jobs could not be restored from their stores: {error:#}");
        }
    });
}

fn look(parts: &Arc<Parts>) -> Result<()> {
    let (unseen, key) = {
        let table = parts.table.lock();
        (table.unseen()?, table.note_key().clone())
    };
    let rebuilt = rebuild(&parts.stores, &unseen, &key, &parts.now());
    let found = take_in(&mut parts.table.lock(), rebuilt, &parts.config.stores)?;
    for job in &found {
        resume::resume(parts, job);
    }
    Ok(())
}

/// Takes in what is new of what was found; returns those jobs.
fn take_in(table: &mut Locked<'_>, rebuilt: Rebuilt, configured: &[PathBuf]) -> Result<Vec<JobRecord>> {
    let new: Vec<FoundJob> = rebuilt
        .jobs
        .into_iter()
        .filter(|found| !table.is_known(&found.job.name))
        .collect();
    let holds_unreadable: BTreeSet<&PathBuf> = rebuilt
        .unreadable
        .iter()
        .filter_map(|job| job.store.as_ref())
        .collect();
    // A store that never was one is nothing lost; one that jobs had is.
    let missed: BTreeSet<PathBuf> = rebuilt
        .unseen
        .into_iter()
        .filter(|store| {
            table.stores().contains(store) || configured.contains(store) || holds_unreadable.contains(store)
        })
        .collect();
    let mut warnings = rebuilt.warnings;
    warnings.extend(missed.iter().filter(|store| !holds_unreadable.contains(store)).map(|store| {
        format!(
            "jobs had their store at {}, but there is no store now: mount it; smcd looks again every minute",
            store.display()
        )
    }));
    let is_free = |name: &String| !table.is_known(name) && new.iter().all(|found| found.job.name != *name);
    let unreadable = rebuilt
        .unreadable
        .iter()
        .filter(|job| is_free(&job.name))
        .cloned()
        .collect();
    let jobs: Vec<_> = new.iter().map(|found| found.job.clone()).collect();
    // All of it or nothing: a crash in between is as if it had not begun.
    table.take_in(new, unreadable, &missed)?;
    if !jobs.is_empty() {
        table.warn(rebuilt_notice(&jobs));
    }
    table.set_search_warnings(warnings);
    Ok(jobs)
}

fn rebuilt_notice(jobs: &[JobRecord]) -> String {
    let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
    let unconfirmed = jobs.iter().filter(|job| job.unconfirmed);
    let unconfirmed: Vec<&str> = unconfirmed.map(|job| job.name.as_str()).collect();
    let confirm = if unconfirmed.is_empty() {
        String::new()
    } else {
        format!(
            "; {} must be confirmed with `smcctl job confirm`",
            unconfirmed.join(", ")
        )
    };
    format!(
        "the state of {} was restored from the stores: check it with `smcctl job show`{confirm}",
        names.join(", ")
    )
}
