//! Has the kernel write what it holds back of a sync's disks before they are read: what was written to a file or to a partition a
//! moment ago is not on its disk yet.

use super::disks::SourceDisk;
use freeze::{Flushed, Holders, OnDisks};
use std::time::Duration;

/// A flush before the first read.
pub(super) struct First {
    /// How long it took.
    pub took: Duration,
    /// What could not be flushed, as a part of a sentence: `/srv, which ...`. `None` if the disks have everything that had been
    /// written.
    pub held_back: Option<String>,
}

/// Flushes all disks. Nothing that cannot be flushed ends a sync: the image is what a power cut would leave, with or without.
pub(super) fn flush(disks: &[SourceDisk]) -> First {
    match find(disks, Holders::Ignore) {
        Ok(found) => {
            let flushed = found.flush();
            First {
                took: flushed.took,
                held_back: held_back(&found, &flushed),
            }
        }
        Err(why) => First {
            took: Duration::ZERO,
            held_back: Some(why),
        },
    }
}

/// What lies on the disks.
///
/// # Errors
/// Why that is not known.
pub(super) fn find(disks: &[SourceDisk], holders: Holders) -> Result<OnDisks, String> {
    let nodes: Vec<_> = disks.iter().map(|disk| disk.device.node().clone()).collect();
    freeze::on_disks(&nodes, holders).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

/// What could not be flushed, as [`First::held_back`] has it.
pub(super) fn held_back(found: &OnDisks, flushed: &Flushed) -> Option<String> {
    let failures = flushed.failures.iter().map(|failed| {
        let path = failed.path.display();
        match &failed.error {
            Some(error) => format!("{path} could not be flushed: {error}"),
            None => format!("{path} could not be opened to be flushed"),
        }
    });
    let unaccounted = found.unaccounted.iter().map(ToString::to_string);
    let all: Vec<String> = failures.chain(unaccounted).collect();
    (!all.is_empty()).then(|| all.join("; "))
}
