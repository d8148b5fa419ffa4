//! How much has been written to disks, by the kernel's own count: the upper bound of what changed.

use crate::clock::Moment;
use crate::job::{JobRecord, WriteCounter};
use hostdev::{BlockDevice, Root};
use std::path::{Component, Path};

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

/// Bytes written to a block device since it appeared; nothing if it is none, or the kernel does not say.
///
/// Only names in /dev are looked up: a path on another filesystem may be on one that does not answer, and nobody who
/// asks this may be held up by it.
pub fn written(path: &Path) -> Option<u64> {
    let is_parent = |part: Component<'_>| part == Component::ParentDir;
    if !path.starts_with("/dev") || path.components().any(is_parent) {
        return None;
    }
    let counters = || {
        let device = BlockDevice::at(&Root::system(), path)?;
        device.map(|device| device.counters()).transpose()
    };
    match counters() {
        Ok(counters) => counters?.written_sectors.checked_mul(512),
        Err(error) => {
            tracing::warn!(disk = %path.display(), "how much was written is not known: {:#}", anyhow::Error::from(error));
            None
        }
    }
}

/// Bytes written between two counts of one boot.
pub fn between(before: &WriteCounter, after: &WriteCounter) -> Option<u64> {
    if before.boot != after.boot {
        return None;
    }
    after.bytes.checked_sub(before.bytes)
}
