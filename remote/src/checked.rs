//! What a target says, checked before anything is calculated from it or written down: a target may be broken, or lie.

use crate::error::{Error, Result};
use imagefmt::{DiskRecord, Geometry, InstantRecord, Manifest};
use std::ops::Range;
use wire::message::BaseOf;

/// Numbers of images: one every microsecond would take 285 years to get there.
const SEQUENCE_MAX: u64 = 1 << 53;

/// Bytes of a disk, and of what was done with it; those of all disks of a job can be added.
pub const BYTES_MAX: u64 = 1 << 56;

/// Disks of an image.
pub const DISKS_MAX: usize = 64;

/// Entries of a list in a record, or of one of its disks.
const LIST_MAX: usize = 4096;

/// Images of a job: a target keeps far fewer.
const IMAGES_MAX: usize = 10_000;

/// Letters of a text for people.
const TEXT_MAX: usize = 2000;

/// A base that may be larger than its disk: so much, and always so many bytes. Its leaves are held in memory.
const BASE_TIMES_MAX: u64 = 16;
const BASE_ALWAYS_BYTES: u64 = 16 << 40;

/// Refuses a base that is so much larger than its disk that its digests would not fit into memory.
///
/// # Errors
/// `Untrue` for such a base.
pub(crate) fn base(disk: &str, geometry: Geometry, base: &BaseOf) -> Result<()> {
    let most = geometry.size_bytes().saturating_mul(BASE_TIMES_MAX);
    match base.size_bytes {
        Some(size_bytes) if size_bytes > most.max(BASE_ALWAYS_BYTES) => Err(Error::untrue(format!(
            "disk {disk} has {} bytes, and the target compares it with one of {size_bytes} bytes",
            geometry.size_bytes()
        ))),
        _ => Ok(()),
    }
}

/// Clusters that the target names, as far as the disk has them.
///
/// # Errors
/// `Untrue` for clusters that do not ascend.
pub(crate) fn clusters(geometry: Geometry, named: Vec<Range<u64>>) -> Result<Vec<Range<u64>>> {
    let ascends = named.windows(2).all(|two| two[0].end <= two[1].start);
    if !ascends || named.iter().any(Range::is_empty) {
        return Err(Error::untrue("the target names clusters that do not ascend"));
    }
    let count = geometry.cluster_count();
    let cut = named
        .into_iter()
        .map(|clusters| clusters.start..clusters.end.min(count));
    Ok(cut.filter(|clusters| !clusters.is_empty()).collect())
}

/// A record of an image that can be true.
///
/// # Errors
/// `Untrue` for numbers and lists that no image has. Texts that are too long for people are cut.
pub(crate) fn manifest(mut manifest: Manifest) -> Result<Manifest> {
    sequence(manifest.sequence)?;
    let can_be_true = manifest.disks.len() <= DISKS_MAX
        && manifest.disks.iter().all(disk_can_be_true)
        && manifest.instant.as_ref().is_none_or(instant_can_be_true);
    if !can_be_true {
        return Err(Error::untrue(
            "the target has a record of an image with numbers that no image has",
        ));
    }
    manifest.consistency_reason = text(&manifest.consistency_reason);
    for disk in &mut manifest.disks {
        disk.method_reason = text(&disk.method_reason);
    }
    Ok(manifest)
}

fn disk_can_be_true(disk: &DiskRecord) -> bool {
    // There are fewer clusters than bytes.
    let numbers = [
        disk.size_bytes,
        disk.compared_bytes,
        disk.audited_bytes,
        disk.dirty_bytes,
        disk.stored_bytes,
        disk.repaired_clusters,
        disk.unreadable_clusters,
    ];
    let ranges = &disk.unreadable;
    numbers.iter().all(|number| *number <= BYTES_MAX)
        && ranges.len() <= LIST_MAX
        && ranges
            .iter()
            .all(|range| range.start < range.end && range.end <= BYTES_MAX)
        && ranges.is_sorted_by(|one, next| one.end <= next.start)
}

fn instant_can_be_true(instant: &InstantRecord) -> bool {
    let passes = instant
        .passes
        .iter()
        .flat_map(|pass| [pass.bytes, pass.dirty_bytes]);
    let lengths = [
        instant.passes.len(),
        instant.filesystems.len(),
        instant.left_out.len(),
    ];
    lengths.iter().all(|length| *length <= LIST_MAX) && passes.into_iter().all(|bytes| bytes <= BYTES_MAX)
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
    use imagefmt::ClusterSize;

    #[test]
    fn numbers_of_disks_that_no_disk_has_are_not_believed() {
        let disk = |change: fn(&mut serde_json::Value)| {
            let mut record = serde_json::json!({
                "name": "vda", "size_bytes": 1 << 30, "logical_block_size": 512, "root": null, "digest": "00",
                "method": "scan", "compared_bytes": 1, "dirty_bytes": 1, "stored_bytes": 1,
                "unreadable_clusters": 2, "unreadable": [{"start": 1, "end": 2}, {"start": 7, "end": 8}],
            });
            change(&mut record);
            disk_can_be_true(&serde_json::from_value(record).unwrap())
        };
        assert!(disk(|_| {}));
        assert!(!disk(|record| record["size_bytes"] = (1u64 << 57).into()));
        assert!(!disk(|record| record["repaired_clusters"] = u64::MAX.into()));
        assert!(!disk(|record| record["unreadable_clusters"] = u64::MAX.into()));
        assert!(!disk(|record| record["unreadable"][0]["end"] = u64::MAX.into()));
        assert!(!disk(|record| record["unreadable"][1]["start"] = 9.into()));
        assert!(!disk(|record| record["unreadable"][1]["start"] = 1.into()));
    }

    #[test]
    fn lists_of_images_ascend_and_end() {
        assert_eq!(sequences(vec![1, 2, 9]).unwrap(), [1, 2, 9]);
        assert!(sequences(Vec::new()).unwrap().is_empty());
        for wrong in [vec![2, 1], vec![1, 1], vec![u64::MAX], (0..20_000).collect()] {
            assert!(sequences(wrong).is_err());
        }
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one range of clusters")]
    fn clusters_ascend_and_end_with_the_disk() {
        let geometry = Geometry::new(10 << 16, ClusterSize::from_bytes(1 << 16).unwrap()).unwrap();
        let cut = clusters(geometry, vec![0..2, 2..3, 8..u64::MAX]).unwrap();
        assert_eq!(cut, [0..2, 2..3, 8..10]);
        assert!(
            clusters(geometry, vec![u64::MAX - 1..u64::MAX])
                .unwrap()
                .is_empty()
        );
        for wrong in [vec![3..4, 1..2], vec![3..3], vec![1..3, 2..4]] {
            assert!(clusters(geometry, wrong).is_err());
        }
    }

    #[test]
    fn a_base_may_be_larger_than_its_disk_and_has_an_end() {
        let geometry = Geometry::new(1 << 44, ClusterSize::from_bytes(1 << 16).unwrap()).unwrap();
        let of = |size_bytes| BaseOf {
            size_bytes,
            ..BaseOf::default()
        };
        for right in [None, Some(1), Some(1 << 48)] {
            assert!(base("vda", geometry, &of(right)).is_ok());
        }
        let refused = base("vda", geometry, &of(Some(u64::MAX >> 1))).unwrap_err();
        assert!(refused.full_message().contains("disk vda has"));
    }

    #[test]
    fn texts_have_an_end_between_two_letters() {
        assert_eq!(text("ä"), "ä");
        let long = text(&"ä".repeat(1 << 20));
        assert_eq!(long.chars().count(), TEXT_MAX + 3);
    }
}
