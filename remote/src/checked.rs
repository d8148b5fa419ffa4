//! What a target says, checked before anything is calculated from it or written down: a target may be broken, or lie.

use crate::error::{Error, Result};
use imagefmt::Manifest;

/// Numbers of images: one every microsecond would take 285 years to get there.
const SEQUENCE_MAX: u64 = 1 << 53;

/// Bytes of a disk, and of what was done with it; those of all disks of a job can be added.
const BYTES_MAX: u64 = 1 << 56;

/// Disks of an image.
const DISKS_MAX: usize = 64;

/// Images of a job: a target keeps far fewer.
const IMAGES_MAX: usize = 10_000;

/// Letters of a text for people.
const TEXT_MAX: usize = 2000;

/// A record of an image that can be true.
///
/// # Errors
/// `Untrue` for numbers that no image has.
pub(crate) fn manifest(manifest: Manifest) -> Result<Manifest> {
    sequence(manifest.sequence)?;
    let bytes = manifest.disks.iter().flat_map(|disk| {
        [
            disk.size_bytes,
            disk.compared_bytes,
            disk.audited_bytes,
            disk.dirty_bytes,
            disk.stored_bytes,
        ]
    });
    if manifest.disks.len() > DISKS_MAX || bytes.into_iter().any(|bytes| bytes > BYTES_MAX) {
        return Err(Error::untrue(
            "the target has a record of an image with numbers that no image has",
        ));
    }
    Ok(manifest)
}

/// A number of an image that can be true.
///
/// # Errors
/// `Untrue` otherwise.
pub(crate) fn sequence(sequence: u64) -> Result<u64> {
    match sequence {
        0..=SEQUENCE_MAX => Ok(sequence),
        _ => Err(Error::untrue(format!(
            "the target has an image with the number {sequence}"
        ))),
    }
}

/// Numbers of the images of a job that can be true.
///
/// # Errors
/// `Untrue` otherwise.
pub(crate) fn sequences(sequences: Vec<u64>) -> Result<Vec<u64>> {
    let ascend = sequences.is_sorted_by(|one, next| one < next);
    if !ascend || sequences.len() > IMAGES_MAX {
        return Err(Error::untrue(
            "the target's list of the images of a job cannot be true",
        ));
    }
    sequences.last().map_or(Ok(0), |last| sequence(*last))?;
    Ok(sequences)
}

/// A text for people, as long as people read.
pub(crate) fn text(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn lists_of_images_ascend_and_end() {
        assert_eq!(sequences(vec![1, 2, 9]).unwrap(), [1, 2, 9]);
        assert!(sequences(Vec::new()).unwrap().is_empty());
        for wrong in [vec![2, 1], vec![1, 1], vec![u64::MAX], (0..20_000).collect()] {
            assert!(sequences(wrong).is_err());
        }
    }

    #[test]
    fn texts_have_an_end_between_two_letters() {
        assert_eq!(text("ä"), "ä");
        let long = text(&"ä".repeat(1 << 20));
        assert_eq!(long.chars().count(), TEXT_MAX + 3);
    }
}
