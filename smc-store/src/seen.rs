//! What the target has of whom: for `smc-store ls`, and for metrics.

use crate::config::Config;
use crate::registry::{Frozen, Registry, Source};
use crate::space;
use anyhow::Result;
use imagefmt::{ErrorKind, ImageId, JobImages, Store};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Images by whose times it is seen how often a job syncs.
const INTERVALS_MAX: usize = 10;

/// A source, and what is here of it.
#[derive(Debug, Serialize)]
pub struct SourceSeen {
    /// Its name.
    pub source: String,
    /// What it may do; absent for one that has images here and no rights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The source whose images it may read, with the role `pull`: it has none of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// When it was enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrolled: Option<Timestamp>,
    /// The directory of its store.
    pub store: String,
    /// Bytes that its images take on disk.
    pub used_bytes: u64,
    /// Bytes that they may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// Why nothing of it is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// Its jobs.
    pub jobs: Vec<JobSeen>,
    /// Why its images cannot be listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A job, and its images.
#[derive(Debug, Serialize)]
pub struct JobSeen {
    /// Its name.
    pub job: String,
    /// How many images there are.
    pub images: usize,
    /// The number of the newest.
    pub newest: u64,
    /// When that was received.
    pub received: Timestamp,
    /// How long ago that was.
    pub seconds_since: i64,
    /// The number of the newest image that is not known to be damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good: Option<u64>,
    /// When that was received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good_received: Option<Timestamp>,
    /// How often images come, as far as that can be seen from the last ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<i64>,
    /// When the next one is to be expected by that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_due: Option<Timestamp>,
    /// Size of all its disks.
    pub size_bytes: u64,
}

/// All machines that are enrolled, and then sources that only have images.
///
/// # Errors
/// A list of sources that cannot be read.
pub fn sources(config: &Config, registry: &Registry, now: Timestamp) -> Result<Vec<SourceSeen>> {
    let mut enrolled = registry.sources()?;
    let mut names: Vec<String> = enrolled.keys().cloned().collect();
    names.extend(stores_without_source(&config.stores, &enrolled)?);
    let seen = |name: String| {
        let source = enrolled.remove(&name);
        see(config, name, source, now)
    };
    Ok(names.into_iter().map(seen).collect())
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

fn see(config: &Config, name: String, source: Option<Source>, now: Timestamp) -> SourceSeen {
    let directory = config.store_of(&name);
    let (jobs, problem) = match jobs(config, &name, now) {
        Ok(jobs) => (jobs, None),
        Err(error) => (Vec::new(), Some(error.full_message())),
    };
    let (used_bytes, problem) = match space::used_below(&directory) {
        Ok(used) => (used, problem),
        Err(error) => (
            0,
            problem.or_else(|| Some(format!("what it takes cannot be counted: {error}"))),
        ),
    };
    SourceSeen {
        source: name,
        role: source.as_ref().map(|source| source.role.to_string()),
        of: source.as_ref().and_then(|source| source.of.clone()),
        enrolled: source.as_ref().map(|source| source.enrolled),
        store: directory.display().to_string(),
        used_bytes,
        quota_bytes: config.quota,
        frozen: source.and_then(|source| source.frozen),
        jobs,
        problem,
    }
}

fn jobs(config: &Config, source: &str, now: Timestamp) -> imagefmt::Result<Vec<JobSeen>> {
    let Some(store) = config.open_store(source)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for (job, images) in store.jobs()? {
        if let Some(latest) = images.latest() {
            found.push(see_job(&store, job, &images, &latest, now)?);
        }
    }
    Ok(found)
}

fn see_job(
    store: &Store,
    job: String,
    images: &JobImages,
    latest: &ImageId,
    now: Timestamp,
) -> imagefmt::Result<JobSeen> {
    let manifest = store.manifest(latest)?;
    let good = match store.fallback(latest)? {
        // Of several jobs in a chain, the image may be another one's.
        Some(fallback) => images.get(fallback.image.sequence()),
        None => Some(latest.clone()),
    };
    let good_received = good
        .as_ref()
        .map(|good| store.manifest(good).map(|manifest| manifest.finished))
        .transpose()?;
    let interval = usual_interval(&times(store, images)?);
    Ok(JobSeen {
        job,
        images: images.sequences().len(),
        newest: latest.sequence(),
        received: manifest.finished,
        seconds_since: now.duration_since(manifest.finished).as_secs(),
        good: good.map(|good| good.sequence()),
        good_received,
        interval_seconds: interval.map(|interval| interval.as_secs()),
        next_due: interval.and_then(|interval| manifest.finished.checked_add(interval).ok()),
        size_bytes: manifest.disks.iter().map(|disk| disk.size_bytes).sum(),
    })
}

/// When the last images were received, the newest first.
fn times(store: &Store, images: &JobImages) -> imagefmt::Result<Vec<Timestamp>> {
    let mut times = Vec::new();
    for image in images.ids().rev().take(INTERVALS_MAX + 1) {
        match store.manifest(&image) {
            Ok(manifest) => times.push(manifest.finished),
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(times)
}

/// The median of the times between images; nothing from fewer than three, which show no habit.
fn usual_interval(times: &[Timestamp]) -> Option<SignedDuration> {
    let mut between: Vec<SignedDuration> = times
        .windows(2)
        .map(|pair| pair[0].duration_since(pair[1]))
        .filter(SignedDuration::is_positive)
        .collect();
    between.sort_unstable();
    let middle = between.len() / 2;
    (between.len() >= 2).then(|| between[middle])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_interval_is_the_median() {
        let at = |minutes: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
        assert_eq!(usual_interval(&[at(60), at(0)]), None, "one interval is no habit");
        // One sync by hand, and a night without any.
        let times = [at(1000), at(940), at(935), at(880), at(820), at(100), at(40)];
        assert_eq!(usual_interval(&times), Some(SignedDuration::from_mins(60)));
        // A clock that was set back.
        assert_eq!(usual_interval(&[at(0), at(60), at(0)]), None);
    }
}
