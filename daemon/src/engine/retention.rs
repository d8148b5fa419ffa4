//! Retention: of a job's images the newest few are kept.

use imagefmt::{ErrorKind, Result, Store};
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
/// Images in use stay; a later sync deletes them when nobody uses them. The newest one always stays.
///
/// # Errors
/// When the store cannot be read or written. What was deleted before stays deleted.
pub fn apply(store: &Store, job: &str, max_images: usize) -> Result<Retained> {
    let images = store.job(job)?;
    let mut retained = Retained::default();
    let count = images.sequences().len();
    let mut excess = count.saturating_sub(max_images.max(1));
    for image in images.ids().take(count.saturating_sub(1)) {
        if excess == 0 {
            break;
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
            Err(error) => return Err(error),
        }
    }
    Ok(retained)
}
