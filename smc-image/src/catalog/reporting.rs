//! Reading disks so that a failure names what is damaged, once.

use super::{chain_text, locked};
use imagefmt::{Disk, ErrorKind, SECTOR_LEN};
use nbd::ExportError;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// Failures that are told apart; further ones are counted as known.
const FAILURES_MAX: usize = 1024;

/// A disk whose failed reads are told once each, on stderr, and remembered.
#[derive(Debug)]
pub struct ReportingDisk {
    disk: Disk,
    failures: Arc<ReadFailures>,
}

impl ReportingDisk {
    /// Reports what cannot be read of `disk` to `failures`.
    pub fn new(disk: Disk, failures: Arc<ReadFailures>) -> Self {
        Self { disk, failures }
    }

    /// Where failures go.
    pub(super) fn failures(&self) -> &ReadFailures {
        &self.failures
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Fills `target` from byte `offset`; a failure names the first byte that cannot be read.
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), ExportError> {
        if self.disk.read_at(offset, target).is_ok() {
            return Ok(());
        }
        read_in_steps(&self.disk, offset, target).map_err(|(at, error)| self.failures.report(at, error))
    }
}

/// Reads cluster by cluster, and sector by sector where the source could not be read, to find the first bad byte.
fn read_in_steps(disk: &Disk, offset: u64, target: &mut [u8]) -> Result<(), (u64, imagefmt::Error)> {
    let cluster_bytes = u64::from(disk.geometry().cluster_size().bytes());
    let mut done = 0;
    while done < target.len() {
        let at = offset + done as u64;
        let part = step(at, cluster_bytes, &mut target[done..]);
        done += part.len();
        match disk.read_at(at, part) {
            Err(error) if error.kind() == ErrorKind::Unreadable => read_sectors(disk, at, part)?,
            read => read.map_err(|error| (at, error))?,
        }
    }
    Ok(())
}

fn read_sectors(disk: &Disk, offset: u64, target: &mut [u8]) -> Result<(), (u64, imagefmt::Error)> {
    let mut done = 0;
    while done < target.len() {
        let at = offset + done as u64;
        let part = step(at, SECTOR_LEN as u64, &mut target[done..]);
        done += part.len();
        disk.read_at(at, part).map_err(|error| (at, error))?;
    }
    Ok(())
}

/// What of `target`, which begins at byte `at`, lies before the next multiple of `unit`.
fn step(at: u64, unit: u64, target: &mut [u8]) -> &mut [u8] {
    let len = usize::try_from(unit - at % unit)
        .unwrap_or(usize::MAX)
        .min(target.len());
    &mut target[..len]
}

/// What could not be read so far.
#[derive(Debug, Default)]
pub struct ReadFailures {
    told: Mutex<HashSet<(String, u64)>>,
    first: Mutex<Option<imagefmt::Error>>,
}

impl ReadFailures {
    /// Tells a failure, if it is new.
    pub(super) fn report(&self, offset: u64, error: imagefmt::Error) -> ExportError {
        let message = chain_text(&error);
        let mut told = locked(&self.told);
        if told.len() < FAILURES_MAX && told.insert((message.clone(), offset)) {
            tracing::error!("cannot read at byte {offset}: {message}");
            if told.len() == FAILURES_MAX {
                tracing::error!("further ranges that cannot be read are not shown");
            }
        }
        locked(&self.first).get_or_insert(error);
        ExportError::io(offset, message)
    }

    /// The first failure, once.
    pub fn take_first(&self) -> Option<imagefmt::Error> {
        locked(&self.first).take()
    }
}
