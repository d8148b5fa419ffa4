//! `smc-store ls`: what the target has of whom.

use crate::config::Config;
use crate::registry::{Frozen, Registry, Source};
use anyhow::Result;
use cli::output;
use cli::table::{Align, Table};
use cli::text::printable;
use cli::units;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// A source as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    source: String,
    /// Absent for one that has images here and no rights.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enrolled: Option<Timestamp>,
    store: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    frozen: Option<Frozen>,
    jobs: Vec<Job>,
    /// Why its images cannot be listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Job {
    job: String,
    images: usize,
    newest: u64,
    received: Timestamp,
    seconds_since: i64,
    size_bytes: u64,
}

/// Prints all sources and their jobs.
///
/// # Errors
/// A list of sources that cannot be read; output that cannot be written.
pub fn list(config: &Config, registry: &Registry, json: bool) -> Result<()> {
    let now = Timestamp::now();
    let mut enrolled = registry.sources()?;
    let mut names: Vec<String> = enrolled.keys().cloned().collect();
    names.extend(stores_without_source(&config.stores, &enrolled)?);
    let shown: Vec<Shown> = names
        .into_iter()
        .map(|name| {
            let source = enrolled.remove(&name);
            show(config, name, source, now)
        })
        .collect();
    if json {
        return output::json(&serde_json::json!({ "sources": shown }));
    }
    print(&shown)
}

/// Directories of sources that have no rights any more.
fn stores_without_source(stores: &Path, enrolled: &BTreeMap<String, Source>) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(stores) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !enrolled.contains_key(&name) && stores.join(&name).join("store.json").exists() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn show(config: &Config, name: String, source: Option<Source>, now: Timestamp) -> Shown {
    let directory = config.store_of(&name);
    let (jobs, problem) = match jobs(config, &name, now) {
        Ok(jobs) => (jobs, None),
        Err(error) => (Vec::new(), Some(error.full_message())),
    };
    Shown {
        source: name,
        role: source.as_ref().map(|source| source.role.to_string()),
        enrolled: source.as_ref().map(|source| source.enrolled),
        store: directory.display().to_string(),
        frozen: source.and_then(|source| source.frozen),
        jobs,
        problem,
    }
}

fn jobs(config: &Config, source: &str, now: Timestamp) -> imagefmt::Result<Vec<Job>> {
    let Some(store) = config.open_store(source)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for (job, images) in store.jobs()? {
        let Some(latest) = images.latest() else { continue };
        let manifest = store.manifest(&latest)?;
        found.push(Job {
            job,
            images: images.sequences().len(),
            newest: latest.sequence(),
            received: manifest.finished,
            seconds_since: now.duration_since(manifest.finished).as_secs(),
            size_bytes: manifest.disks.iter().map(|disk| disk.size_bytes).sum(),
        });
    }
    Ok(found)
}

fn print(sources: &[Shown]) -> Result<()> {
    if sources.is_empty() {
        return output::line("no source is enrolled: `smc-store enrol SOURCE` prints the line for one");
    }
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("JOB", Align::Left),
        ("IMAGES", Align::Right),
        ("NEWEST", Align::Right),
        ("RECEIVED", Align::Left),
        ("DISKS", Align::Right),
    ]);
    for source in sources {
        let name = match source.role {
            Some(_) => source.source.clone(),
            None => format!("{} (no rights)", printable(&source.source)),
        };
        if source.jobs.is_empty() {
            table.row([
                name.clone(),
                "-".into(),
                "0".into(),
                "-".into(),
                "never".into(),
                "-".into(),
            ]);
        }
        for job in &source.jobs {
            let age = u64::try_from(job.seconds_since).unwrap_or(0);
            let received = format!("{} ago", units::duration(age));
            let cells = [
                name.clone(),
                printable(&job.job),
                job.images.to_string(),
                job.newest.to_string(),
                received,
                units::size(job.size_bytes),
            ];
            table.row(cells);
        }
        if let Some(frozen) = &source.frozen {
            table.note(format!(
                "  nothing of {} is deleted: image {} {} (`smc-store accept {}`)",
                source.source, frozen.image, frozen.reason, source.source
            ));
        }
        if let Some(problem) = &source.problem {
            table.note(format!("  {}: {}", source.source, printable(problem)));
        }
    }
    table.print()
}
