//! How much has been written to disks, by the kernel's own count: the upper bound of what changed.

use crate::clock::Moment;
use crate::job::{JobRecord, WriteCounter};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Bytes written to all disks of a job since the machine booted; nothing if one of them is no block device.
pub fn count(job: &JobRecord, now: &Moment) -> Option<WriteCounter> {
    let bytes = job
        .disks
        .iter()
        .map(|disk| written(&disk.path))
        .sum::<Option<u64>>()?;
    Some(WriteCounter {
        boot: now.boot.to_string(),
        bytes,
    })
}

/// Bytes written to a block device since it appeared (Documentation/block/stat.rst, field 7, in 512 bytes).
pub fn written(path: &Path) -> Option<u64> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.file_type().is_block_device() {
        return None;
    }
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    sectors.checked_mul(512)
}

/// Bytes written between two counts of one boot.
pub fn between(before: &WriteCounter, after: &WriteCounter) -> Option<u64> {
    if before.boot != after.boot {
        return None;
    }
    after.bytes.checked_sub(before.bytes)
}
