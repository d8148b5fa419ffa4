//! A table of jobs.

use crate::view::words::{outcome_tone, state, tone, waiting};
use api::{Event, JobView, RunOutcome};
use cli::paint::Paint;
use cli::table::{Align, Cell, Table};
use cli::units::{duration, local_time, size};

/// A row a job; errors and warnings stand below.
pub fn lines(paint: Paint, jobs: &[JobView]) -> Vec<String> {
    if jobs.is_empty() {
        return vec!["no jobs: `smcctl job create` creates one".to_owned()];
    }
    let left = ["NAME", "STATUS", "NEXT"].map(|heading| (heading, Align::Left));
    let columns = [
        left.as_slice(),
        &[
            ("IMAGES", Align::Right),
            ("LAST-SYNC", Align::Left),
            ("DISKS", Align::Right),
            ("SIZE", Align::Right),
        ],
    ];
    let mut table = Table::new(&columns.concat());
    for job in jobs {
        table.row(row(job));
        let error = job.error.iter().map(|error| format!("  error: {error}"));
        let warnings = job.warnings.iter().map(|warning| format!("  warning: {warning}"));
        let wait = job
            .progress
            .as_ref()
            .and_then(|progress| progress.waiting_for_target.as_ref());
        let wait = wait.map(|wait| format!("  {} {}", job.name, waiting(wait)));
        error
            .chain(wait)
            .chain(warnings)
            .for_each(|text| table.note(text));
    }
    table.lines(paint)
}

fn row(job: &JobView) -> [Cell; 7] {
    let bytes = job
        .disks
        .iter()
        .map(|disk| disk.size_bytes)
        .fold(0, u64::saturating_add);
    [
        job.name.clone().into(),
        Cell::painted(tone(job.status), state(job)),
        next(job).into(),
        job.images.len().to_string().into(),
        last_sync(job),
        job.disks.len().to_string().into(),
        size(bytes).into(),
    ]
}

/// What happens next and how soon, in as few words as a table takes.
fn next(job: &JobView) -> String {
    let what = match job.next.event {
        Event::Start => "starts",
        Event::Sync => "sync",
        Event::RunEnds => "ends",
        Event::Expire => "expires",
        Event::Nothing => return "-".to_owned(),
    };
    match job.next.in_seconds {
        Some(seconds) => format!("{what} in {}", duration(seconds)),
        None => what.to_owned(),
    }
}

fn last_sync(job: &JobView) -> Cell {
    let Some(run) = &job.last_run else {
        return "-".to_owned().into();
    };
    let when = local_time(run.finished.unwrap_or(run.started));
    match run.outcome {
        RunOutcome::Succeeded => when.into(),
        outcome => Cell::painted(outcome_tone(outcome), format!("{when} {outcome}")),
    }
}
