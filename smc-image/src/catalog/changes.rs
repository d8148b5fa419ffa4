//! Meta contexts that tell what of a disk differs from another image of its job.
//!
//! `smc:changed` compares with the parent image, `smc:changed:JOB/NUMBER` with any other of the job. The latter is
//! also answered as `qemu:dirty-bitmap:JOB/NUMBER`, which is how incremental backup tools ask today.

use imagefmt::{ImageId, ImageRef, Store};

/// The flag of an extent that differs: the same bit as QEMU's `NBD_STATE_DIRTY`.
pub(super) const CHANGED: u32 = 1 << 0;

const PARENT: &str = "smc:changed";
const PREFIXES: [&str; 2] = ["smc:changed:", "qemu:dirty-bitmap:"];

/// The contexts of an image.
pub(super) fn offered(store: &Store, image: &ImageId) -> imagefmt::Result<Vec<String>> {
    let parent = match store.parent(image) {
        Ok(found) => found.map(|_| PARENT.to_owned()),
        // A client that asks for this context is told why it cannot be answered; all others are served.
        Err(_) => Some(PARENT.to_owned()),
    };
    let others = store.job(image.job())?;
    let others: Vec<ImageId> = others.ids().filter(|other| other != image).collect();
    let named = PREFIXES
        .iter()
        .flat_map(|prefix| others.iter().map(move |other| format!("{prefix}{other}")));
    Ok(parent.into_iter().chain(named).collect())
}

/// The image that a context compares with; `None` if it is none of ours.
pub(super) fn compared(store: &Store, image: &ImageId, context: &str) -> imagefmt::Result<Option<ImageId>> {
    if context == PARENT {
        return store.parent(image);
    }
    let other = PREFIXES.iter().find_map(|prefix| context.strip_prefix(prefix));
    let other: Option<ImageRef> = other.and_then(|other| other.parse().ok());
    other.map(|other| store.resolve(&other)).transpose()
}
