//! What cannot be read of a disk: a sync that is to skip it reads all the rest first, then comes back for what is left.
//!
//! A disk that fails may take a minute to give up at each bad place, and may not live long. So the first pass leaves
//! every MiB that cannot be read at once; the pass after it reads those block by block.

use super::disks::SourceDisk;
use super::error::{Error, ErrorKind, Result};
use super::passes::{Planned, Reading, named};
use super::request::Observer;
use blockio::{AlignedBuf, BLOCK_BYTES, Device, OnReadError};
use changetrack::Plan;
use imagefmt::{Geometry, Method};
use std::collections::BTreeMap;
use std::ops::Range;

/// Places at which a disk is asked whether it still answers.
const PROBES: u64 = 32;

/// Places that a warning counts one by one.
const NAMED_MAX: usize = 3;

/// What a pass could not read: bytes of each disk, by its place in the job.
pub(super) type Unread = BTreeMap<usize, Vec<Range<u64>>>;

impl<O: Observer> Reading<'_, '_, O> {
    /// Reads block by block what a pass has left, and stores what can be read of it.
    ///
    /// # Errors
    /// `Device` where a disk no longer answers at all: that is not a bad place.
    pub(super) fn salvage(&mut self, left: &Unread) -> Result<()> {
        let mut plans: Vec<Planned> = Vec::new();
        for (&disk, bytes) in left {
            check_answers(&self.job.disks[disk], bytes)?;
            let geometry = self.ids[disk].geometry();
            let clusters = bytes.iter().map(|bytes| clusters_of(geometry, bytes));
            let why = "what could not be read at once";
            plans.push((disk, Plan::new(geometry, clusters, Method::Tracked, why)));
        }
        let unreadable = self.storing_pass(&plans, OnReadError::Salvage)?;
        for (disk, bytes) in unreadable {
            let source = &self.job.disks[disk];
            check_answers(source, &bytes)?;
            self.job.observer.warn(&warning(&source.meta.name, &bytes));
        }
        Ok(())
    }
}

fn clusters_of(geometry: Geometry, bytes: &Range<u64>) -> Range<u64> {
    geometry.cluster_at(bytes.start)..geometry.cluster_at(bytes.end - 1) + 1
}

/// Tells bad places from a disk that is gone: somewhere else it can be read.
fn check_answers(disk: &SourceDisk, unread: &[Range<u64>]) -> Result<()> {
    let device = &disk.device;
    let step = (device.size_bytes() / PROBES).next_multiple_of(BLOCK_BYTES as u64);
    let places = (0..PROBES)
        .map(|probe| probe * step)
        .chain(unread.iter().map(|bytes| bytes.end));
    let is_read = |&at: &u64| !unread.iter().any(|bytes| bytes.contains(&at));
    if places.filter(is_read).any(|at| can_read(device, at)) {
        return Ok(());
    }
    let error = Error::new(
        ErrorKind::Device,
        "nothing of it can be read any more, so the sync ends and does not take all of it for unreadable: is the disk \
         still connected?",
    );
    Err(error.within(named(disk)))
}

fn can_read(device: &Device, at: u64) -> bool {
    let left = device.size_bytes().saturating_sub(at);
    let mut block = AlignedBuf::new(BLOCK_BYTES.min(usize::try_from(left).unwrap_or(BLOCK_BYTES)));
    left > 0 && device.read_at(at, &mut block).is_ok()
}

fn warning(name: &str, bytes: &[Range<u64>]) -> String {
    let total: u64 = bytes.iter().map(|bytes| bytes.end - bytes.start).sum();
    let places = bytes.iter().take(NAMED_MAX).map(|bytes| bytes.start.to_string());
    let places = places.collect::<Vec<_>>().join(", ");
    let more = match bytes.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{name}: {} could not be read from the disk, at byte {places}{more}. The image has everything else; reads of \
         these bytes of it fail. `smc-image info --unreadable` lists them. Back up the disk's files, and replace the \
         disk",
        cli::units::size(total)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_counts_bytes_and_names_the_first_places() {
        let places: Vec<_> = [512, 8192, 20480, 65536].map(|at| at..at + 512).into();
        let text = warning("vda", &places);
        assert!(text.contains("vda: 2 KiB could not be read"), "{text}");
        assert!(text.contains("at byte 512, 8192, 20480 and 1 more"), "{text}");
        assert!(warning("vda", &places[..1]).contains("at byte 512. The image"));
    }
}
