//! Has the kernel write what it holds back of a sync's disks before they are read: what was written to a file or to a partition a
//! moment ago is not on its disk yet.

use super::disks::SourceDisk;
use freeze::{Flushed, Holders, OnDisks};

/// What could not be flushed, as a part of a sentence: `/srv, which ...`. `None` if the disks have everything that had been written.
///
/// Nothing of it ends a sync: the image is what a power cut would leave, with or without.
pub(super) fn flush(disks: &[SourceDisk]) -> Option<String> {
    let nodes: Vec<_> = disks.iter().map(|disk| disk.device.node().clone()).collect();
    match freeze::on_disks(&nodes, Holders::Ignore) {
        Ok(found) => held_back(&found, &found.flush()),
        Err(error) => Some(format!("{:#}", anyhow::Error::from(error))),
    }
}

fn held_back(found: &OnDisks, flushed: &Flushed) -> Option<String> {
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
