//! `smc-store ls`: what the target has of whom.

use crate::config::Config;
use crate::registry::Registry;
use crate::seen::{self, JobSeen, SourceSeen};
use anyhow::Result;
use cli::output;
use cli::paint::Tone;
use cli::table::{Align, Cell, Table};
use cli::text::printable;
use cli::units;
use jiff::Timestamp;

/// Prints all sources and their jobs.
///
/// # Errors
/// A list of sources that cannot be read; output that cannot be written.
pub fn list(config: &Config, registry: &Registry, json: bool) -> Result<()> {
    let now = Timestamp::now();
    let seen = seen::sources(config, registry, now)?;
    if json {
        return output::json(&serde_json::json!({ "sources": seen }));
    }
    print(&seen, now)
}

fn print(sources: &[SourceSeen], now: Timestamp) -> Result<()> {
    if sources.is_empty() {
        return output::line("no source is enrolled: `smc-store enrol SOURCE` prints the line for one");
    }
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("JOB", Align::Left),
        ("IMAGES", Align::Right),
        ("NEWEST", Align::Right),
        ("RECEIVED", Align::Left),
        ("NEXT DUE", Align::Left),
        ("DISKS", Align::Right),
    ]);
    for source in sources.iter().filter(|source| source.of.is_none()) {
        let name = match source.role {
            Some(_) => source.source.clone(),
            None => format!("{} (no rights)", printable(&source.source)),
        };
        if source.jobs.is_empty() {
            let empty = [&name, "-", "0", "-", "never", "-", "-"];
            table.row(empty.map(|text| Cell::from(text.to_owned())));
        }
        for job in &source.jobs {
            table.row(cells(&name, job, now));
        }
        let readers = sources
            .iter()
            .filter(|reader| reader.of.as_ref() == Some(&source.source));
        let readers = readers.map(|reader| format!("  {} may read its images", printable(&reader.source)));
        notes(source)
            .into_iter()
            .chain(readers)
            .for_each(|note| table.note(note));
    }
    table.print()
}

fn cells(name: &str, job: &JobSeen, now: Timestamp) -> [Cell; 7] {
    let unknown = || "cannot be read".to_owned();
    let age = job
        .seconds_since
        .map(|seconds| u64::try_from(seconds).unwrap_or(0));
    [
        name.to_owned().into(),
        printable(&job.job).into(),
        job.images.to_string().into(),
        job.newest.to_string().into(),
        age.map_or_else(unknown, |age| format!("{} ago", units::duration(age)))
            .into(),
        due(job, now),
        job.size_bytes.map_or_else(unknown, units::size).into(),
    ]
}

/// When the next image is to be expected. One that is late by more than an interval stands out.
fn due(job: &JobSeen, now: Timestamp) -> Cell {
    let Some(due) = job.next_due else {
        return "-".to_owned().into();
    };
    let seconds = due.duration_since(now).as_secs();
    if seconds >= 0 {
        return format!("in {}", units::duration(seconds.unsigned_abs())).into();
    }
    let late = format!("{} late", units::duration(seconds.unsigned_abs()));
    match -seconds > job.interval_seconds.unwrap_or(0) {
        true => Cell::painted(Tone::Bad, late),
        false => late.into(),
    }
}

fn notes(source: &SourceSeen) -> Vec<String> {
    let name = printable(&source.source);
    let mut notes = Vec::new();
    match source.quota_bytes {
        Some(quota) => notes.push(format!(
            "  {name} takes {} of its quota of {}",
            units::size(source.used_bytes),
            units::size(quota)
        )),
        None if source.used_bytes > 0 => {
            notes.push(format!("  {name} takes {}", units::size(source.used_bytes)));
        }
        None => {}
    }
    let damaged = source.jobs.iter().filter(|job| job.good != Some(job.newest));
    notes.extend(damaged.map(|job| {
        let good = job
            .good
            .map_or_else(|| "no other one".to_owned(), |good| format!("{}/{good}", job.job));
        format!(
            "  image {}/{} of {name} is damaged, or may be: {good} is good as far as is known",
            job.job, job.newest
        )
    }));
    let unread = source.jobs.iter().filter_map(|job| job.problem.as_ref());
    notes.extend(unread.map(|problem| format!("  {name}: {}", printable(problem))));
    if let Some(frozen) = &source.frozen {
        notes.push(format!(
            "  nothing of {name} is deleted: image {} {} (`smc-store accept {name}`)",
            frozen.image, frozen.reason
        ));
    }
    if let Some(problem) = &source.problem {
        notes.push(format!("  {name}: {}", printable(problem)));
    }
    notes
}
