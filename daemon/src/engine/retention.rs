//! Retention: of a job's images the newest few are kept.

use imagefmt::{ErrorKind, Fallback, ImageId, Proven, Result, Store};
use serde::Serialize;

/// An image that was deleted because there were more than are to be kept.
#[derive(Debug, Clone, Serialize)]
pub struct DeletedImage {
    /// As people write it: `web01/3`.
    pub image: String,
    /// Bytes that this freed in the store.
    pub freed_bytes: u64,
}

/// The result of deleting the images beyond those to be kept.
#[derive(Debug, Default)]
pub struct Retained {
    /// Images that were deleted.
    pub deleted: Vec<DeletedImage>,
    /// Whether more images are left than should be, because they are in use.
    pub in_use: bool,
    /// Why more images are left than should be, or why not all space was freed.
    pub warnings: Vec<String>,
}

/// Deletes the earliest unused images of `job` until no more than `max_images` are left.
///
/// Images in use stay; a later sync deletes them when nobody uses them. The newest one always stays. As long as a newer
/// image is known to be damaged and none since is known to be good, so do that one and the last one that may be good.
/// The newest image that was verified and is good stays, and so do the newest one that booted and the newest one for which all
/// disks could be read completely. An image that cannot be deleted for a reason of its own keeps no other one from it.
///
/// # Errors
/// When the store cannot be read or written. What was deleted before stays deleted.
pub fn apply(store: &Store, job: &str, max_images: usize) -> Result<Retained> {
    let images = store.job(job)?;
    let mut retained = Retained::default();
    let count = images.sequences().len();
    let mut excess = count.saturating_sub(max_images.max(1));
    let Some(latest) = images.latest().filter(|_| excess > 0) else {
        return Ok(retained);
    };
    let fallback = store.fallback(&latest)?;
    let proven = store.proven(&latest)?;
    let mut kept_as_proven = Vec::new();
    for image in images.ids().take(count.saturating_sub(1)) {
        if excess == 0 {
            break;
        }
        if let Some(reason) = reason_to_keep(store, &image, fallback.as_ref()) {
            retained.warnings.push(reason);
            continue;
        }
        if let Some(proof) = proof_of(&proven, &image) {
            kept_as_proven.push(format!(
                "{image} is kept as well, as it is the newest image that {proof}"
            ));
            continue;
        }
        match store.delete(&image) {
            Ok(reclaimed) => {
                excess -= 1;
                let reasons = reclaimed.unfinished.iter().chain(&reclaimed.kept);
                retained.warnings.extend(reasons.map(|reason| {
                    format!("{image} is deleted, but not all of its space was freed: {reason}")
                }));
                retained.deleted.push(DeletedImage {
                    image: image.to_string(),
                    freed_bytes: reclaimed.freed_bytes,
                });
            }
            Err(error) if error.kind() == ErrorKind::InUse => {
                retained.in_use = true;
                retained.warnings.push(format!(
                    "{} (it will be deleted after a later sync)",
                    error.full_message()
                ));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => excess -= 1,
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported) => {
                retained
                    .warnings
                    .push(format!("{image} is kept: {}", error.full_message()));
            }
            Err(error) => return Err(error),
        }
    }
    // There is nothing to warn of if no more images are left than were wished for.
    if excess > 0 {
        retained.warnings.append(&mut kept_as_proven);
    }
    Ok(retained)
}

/// What was proven of an image and of no newer one.
fn proof_of(proven: &Proven, image: &ImageId) -> Option<String> {
    let proofs = [
        (&proven.verified, "was verified"),
        (&proven.booted, "booted"),
        (&proven.whole, "has everything of its disks"),
    ];
    let own = proofs
        .into_iter()
        .filter(|(newest, _)| newest.as_ref() == Some(image));
    let own: Vec<_> = own.map(|(_, words)| words).collect();
    (!own.is_empty()).then(|| own.join(" and "))
}

/// Why an image stays that nobody uses, where there is a reason.
fn reason_to_keep(store: &Store, image: &ImageId, fallback: Option<&Fallback>) -> Option<String> {
    match fallback {
        Some(Fallback { image: last, damaged }) if last == image => {
            return Some(format!(
                "{image} is kept, as it is the newest image that may be good: {damaged} is damaged, and no newer one \
                 was verified. It is deleted once a newer image has been verified and is good (`smc-image verify`)"
            ));
        }
        Some(Fallback { image: last, damaged }) if damaged == image => {
            return Some(format!("{image}, which is damaged, is kept as long as {last} is"));
        }
        _ => {}
    }
    let error = store.pins(image).err()?;
    Some(format!(
        "{image} is kept: whether it is pinned cannot be read: {}. `smc-image unpin {image}` takes all its pins away",
        error.full_message()
    ))
}
