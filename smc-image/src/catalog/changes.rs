//! Meta contexts that tell what of a disk differs from another image of its job.
//!
//! `smc:changed` compares with the parent image, `smc:changed:JOB/NUMBER` with any other of the job. The latter is
//! also answered as `qemu:dirty-bitmap:JOB/NUMBER`, which is how incremental backup tools ask today.

use imagefmt::{ImageRef, Store, Which};

/// The flag of an extent that differs: the same bit as QEMU's `NBD_STATE_DIRTY`.
pub(super) const CHANGED: u32 = 1 << 0;

const PARENT: &str = "smc:changed";
const PREFIXES: [&str; 2] = ["smc:changed:", "qemu:dirty-bitmap:"];

/// The contexts of an image, which is named by number.
pub(super) fn offered(store: &Store, image: &ImageRef) -> imagefmt::Result<Vec<String>> {
    let others = others(store, image)?;
    let parent = parent(store, image)?.map(|_| PARENT.to_owned());
    let named = PREFIXES
        .iter()
        .flat_map(|prefix| others.iter().map(move |other| format!("{prefix}{other}")));
    Ok(parent.into_iter().chain(named).collect())
}

/// The image that a context compares with; `None` if it is none of ours.
pub(super) fn compared(store: &Store, image: &ImageRef, context: &str) -> imagefmt::Result<Option<ImageRef>> {
    if context == PARENT {
        return parent(store, image);
    }
    let other = PREFIXES.iter().find_map(|prefix| context.strip_prefix(prefix));
    Ok(other.and_then(|other| other.parse().ok()))
}

/// The other images of the job, ascending.
fn others(store: &Store, image: &ImageRef) -> imagefmt::Result<Vec<ImageRef>> {
    let numbered = |sequence| ImageRef {
        job: image.job.clone(),
        which: Which::Sequence(sequence),
        disk: None,
    };
    let sequences = store.job(&image.job)?.sequences.into_iter().map(numbered);
    Ok(sequences.filter(|other| other.which != image.which).collect())
}

/// The parent image, if there is one and it has not been deleted.
fn parent(store: &Store, image: &ImageRef) -> imagefmt::Result<Option<ImageRef>> {
    let (chain, sequence) = store.resolve(image)?;
    let Some(parent) = store.manifest(&chain, sequence)?.parent else {
        return Ok(None);
    };
    let others = others(store, image)?;
    Ok(others
        .into_iter()
        .find(|other| other.which == Which::Sequence(parent.sequence)))
}
