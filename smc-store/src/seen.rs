//! What the target has of whom: for `smc-store ls`, and for metrics.

use crate::config::Config;
use crate::registry::{Frozen, Registry, Source};
use crate::space;
use anyhow::Result;
use imagefmt::{Error, ErrorKind, ImageId, JobImages, Known, Store};
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
    /// Why its images cannot be listed, or not all of them.
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
    /// What is known of it: `good` (verified whole), `not_known`, or `damaged`, which includes what cannot be read.
    pub newest_state: &'static str,
    /// When that was received; absent where its manifest cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<Timestamp>,
    /// How long ago that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_since: Option<i64>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Why its newest image, or one before, cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
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
    let first_image = source.as_ref().and_then(|source| source.first_image);
    let (jobs, problem) = jobs(config, &name, first_image, now)
        .unwrap_or_else(|error| (Vec::new(), Some(error.full_message())));
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

/// The jobs of a source that can be read, and why others cannot.
fn jobs(
    config: &Config,
    source: &str,
    first_image: Option<Timestamp>,
    now: Timestamp,
) -> imagefmt::Result<(Vec<JobSeen>, Option<String>)> {
    let Some(store) = config.open_store(source)? else {
        return Ok((Vec::new(), first_image.map(|since| gone(config, source, since))));
    };
    let (jobs, unread) = store.readable_jobs()?;
    let seen = jobs.into_iter().filter_map(|(job, images)| {
        let latest = images.latest()?;
        Some(see_job(&store, job, &images, &latest, now))
    });
    let unread: Vec<String> = unread.iter().map(Error::full_message).collect();
    Ok((seen.collect(), (!unread.is_empty()).then(|| unread.join("; "))))
}

/// What is wrong with a source whose store is not there, though it has had images.
pub fn gone(config: &Config, source: &str, since: Timestamp) -> String {
    format!(
        "the store of {source} is gone: it has had images since {}, and {} is no store",
        cli::units::local_time(since),
        config.store_of(source).display()
    )
}

fn see_job(store: &Store, job: String, images: &JobImages, latest: &ImageId, now: Timestamp) -> JobSeen {
    let (manifest, mut problem) = match store.manifest(latest) {
        Ok(manifest) => (Some(manifest), None),
        Err(error) => (None, Some(error.full_message())),
    };
    let (state, good) = good(store, images);
    let good = good.and_then(|good| Some((good.sequence(), store.manifest(&good).ok()?.finished)));
    let interval = times(store, images).map(|times| usual_interval(&times));
    let interval = interval.unwrap_or_else(|error| {
        problem.get_or_insert_with(|| error.full_message());
        None
    });
    let received = manifest.as_ref().map(|manifest| manifest.finished);
    JobSeen {
        job,
        images: images.sequences().len(),
        newest: latest.sequence(),
        newest_state: state,
        received,
        seconds_since: received.map(|received| now.duration_since(received).as_secs()),
        good: good.map(|(sequence, _)| sequence),
        good_received: good.map(|(_, received)| received),
        interval_seconds: interval.map(|interval| interval.as_secs()),
        next_due: interval
            .zip(received)
            .and_then(|(interval, received)| received.checked_add(interval).ok()),
        size_bytes: manifest.map(|manifest| manifest.disks.iter().map(|disk| disk.size_bytes).sum()),
        problem,
    }
}

/// What is known of the newest image, and the image to go back to: the newest one, unless it is damaged; then the newest one below it
/// that is known to be good or, if none is, that is not known to be damaged.
fn good(store: &Store, images: &JobImages) -> (&'static str, Option<ImageId>) {
    let mut known = images
        .ids()
        .rev()
        .filter_map(|image| store.known_of(&image).map(|known| (image, known)));
    match known.next() {
        Some((image, Known::Good)) => return ("good", Some(image)),
        Some((image, Known::Nothing)) => return ("not_known", Some(image)),
        Some((_, Known::Damaged)) | None => {}
    }
    let mut not_known = None;
    for (image, known) in known {
        match known {
            Known::Good => return ("damaged", Some(image)),
            Known::Nothing => {
                not_known.get_or_insert(image);
            }
            Known::Damaged => {}
        }
    }
    ("damaged", not_known)
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
