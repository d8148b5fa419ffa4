//! What a target deletes: by its own clock, never more than one image at a commit, and nothing while an image looks as if its source had
//! been taken over.

use crate::config::Config;
use crate::registry::{Frozen, Registry};
use imagefmt::{Error, ErrorKind, ImageId, Manifest, Result, Store};
use jiff::{SignedDuration, Timestamp};

/// An image is strange that changes so many times what those before it did, and at least this share of the disks.
const TIMES: u64 = 5;
const SHARE_PERCENT: u64 = 20;

/// Images before it that it is compared with.
const COMPARED: usize = 10;

/// Deletes at most one image of a job, and freezes retention where the new image is strange. Returns what somebody has to know.
pub fn after_commit(
    config: &Config,
    registry: &Registry,
    source: &str,
    job: &str,
    new: &Manifest,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let done = Store::open(&config.store_of(source)).and_then(|store| {
        if let Some(reason) = strange(&store, job, new)? {
            let frozen = Frozen {
                image: format!("{}/{}", new.job, new.sequence),
                reason: reason.clone(),
                since: Timestamp::now(),
            };
            match registry.freeze(source, &frozen) {
                Ok(()) => warnings.push(frozen_text(source, &frozen)),
                Err(error) => {
                    warnings.push(format!(
                        "{}: nothing is deleted now: {error:#}",
                        frozen_text(source, &frozen)
                    ));
                    return Ok(());
                }
            }
        }
        if is_frozen(registry, source)? {
            return Ok(());
        }
        warnings.extend(delete_one(&store, job, config, Timestamp::now())?);
        Ok(())
    });
    if let Err(error) = done {
        warnings.push(format!(
            "the image is committed, but earlier ones were not looked at: {}",
            error.full_message()
        ));
    }
    warnings
}

fn frozen_text(source: &str, frozen: &Frozen) -> String {
    format!(
        "image {} {}: nothing of source {source} is deleted until somebody has looked at it (`smc-store accept {source}`)",
        frozen.image, frozen.reason
    )
}

fn is_frozen(registry: &Registry, source: &str) -> Result<bool> {
    let sources = registry.sources();
    let sources = sources.map_err(|error| Error::new(ErrorKind::Io, format!("{error:#}")))?;
    // One that was revoked meanwhile loses nothing either.
    Ok(sources.get(source).is_none_or(|source| source.frozen.is_some()))
}

/// What a sync changed, and how much of that could not be compressed, of 100.
fn shares(manifest: &Manifest) -> (u64, u64) {
    let sum =
        |of: fn(&imagefmt::DiskRecord) -> u64| manifest.disks.iter().map(of).fold(0, u64::saturating_add);
    let (size, dirty) = (sum(|disk| disk.size_bytes), sum(|disk| disk.dirty_bytes));
    let stored = sum(|disk| disk.stored_bytes);
    let percent = |part: u64, of: u64| {
        u64::try_from(u128::from(part) * 100 / u128::from(of.max(1))).unwrap_or(u64::MAX)
    };
    (percent(dirty, size), percent(stored, dirty).min(100))
}

/// What is strange about an image, beside those before it.
fn strange(store: &Store, job: &str, new: &Manifest) -> Result<Option<String>> {
    let images = store.job(job)?;
    let before = images
        .ids()
        .rev()
        .filter(|id| id.sequence() < new.sequence)
        .take(COMPARED);
    let mut known = Vec::new();
    for image in before {
        match store.manifest(&image) {
            // The first one has everything.
            Ok(manifest) if manifest.parent.is_some() => known.push(shares(&manifest)),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Damaged => {}
            Err(error) => return Err(error),
        }
    }
    Ok(judge(shares(new), &known, new.parent.is_some()))
}

/// The same of numbers: of the new image, and of those before it.
fn judge(new: (u64, u64), known: &[(u64, u64)], is_incremental: bool) -> Option<String> {
    if !is_incremental {
        return None;
    }
    let (changed, noise) = new;
    let usual = median(known.iter().map(|(changed, _)| *changed));
    let much = usual.filter(|usual| changed >= SHARE_PERCENT && changed > TIMES * usual);
    if let Some(usual) = much {
        return Some(format!(
            "changes {changed} % of the disks, those before it {usual} %"
        ));
    }
    let usual_noise = median(known.iter().map(|(_, noise)| *noise))?;
    let is_noise = changed * 4 >= SHARE_PERCENT && noise >= 95 && usual_noise < 75;
    is_noise.then(|| {
        format!("changes {changed} % of the disks into what cannot be compressed, as encrypted data cannot")
    })
}

fn median(numbers: impl Iterator<Item = u64>) -> Option<u64> {
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied()
}

/// Deletes the earliest image of a job that nothing speaks for, if there are more than are to be kept.
fn delete_one(store: &Store, job: &str, config: &Config, now: Timestamp) -> Result<Vec<String>> {
    let images = store.job(job)?;
    let Some(latest) = images.latest() else {
        return Ok(Vec::new());
    };
    let excess = images.sequences().len().saturating_sub(config.max_images);
    if excess == 0 {
        return Ok(Vec::new());
    }
    let (fallback, proven) = (store.fallback(&latest)?, store.proven(&latest)?);
    let is_proof = |image: &ImageId| {
        let own = |newest: &Option<ImageId>| newest.as_ref() == Some(image);
        let spared = fallback
            .as_ref()
            .is_some_and(|spared| spared.image == *image || spared.damaged == *image);
        spared || own(&proven.verified) || own(&proven.booted) || own(&proven.whole)
    };
    let keep_within = SignedDuration::try_from(config.keep_within).unwrap_or(SignedDuration::MAX);
    for image in images.ids().filter(|image| *image != latest && !is_proof(image)) {
        let age = match store.manifest(&image) {
            // The target itself has written the time there.
            Ok(manifest) => now.duration_since(manifest.finished),
            Err(error) if error.kind() == ErrorKind::Damaged => continue,
            Err(error) => return Err(error),
        };
        if age < keep_within {
            break;
        }
        match store.delete(&image) {
            Ok(reclaimed) => {
                tracing::info!(
                    "{image} was deleted: there are {} of {}",
                    images.sequences().len(),
                    config.max_images
                );
                let reasons = reclaimed.unfinished.iter().chain(&reclaimed.kept);
                return Ok(reasons
                    .map(|reason| format!("{image} is deleted, but not all of its space was freed: {reason}"))
                    .collect());
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::InUse | ErrorKind::NotFound | ErrorKind::Damaged
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_far_more_than_before_is_strange() {
        let usual = [(2, 40), (3, 50), (1, 45)];
        assert_eq!(judge((4, 50), &usual, true), None);
        assert_eq!(judge((15, 50), &usual, true), None, "below a fifth of the disks");
        assert!(judge((90, 99), &usual, true).is_some());
        assert_eq!(
            judge((20, 50), &[], true),
            None,
            "nothing is known to compare it with"
        );
        assert_eq!(judge((100, 50), &[], false), None, "the first image");
        assert_eq!(judge((40, 50), &[(30, 50)], true), None, "as always");
        assert!(judge((6, 99), &usual, true).is_some(), "noise");
        assert_eq!(judge((6, 99), &[(6, 99)], true), None, "as always");
    }
}
