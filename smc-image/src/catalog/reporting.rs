//! Reading disks so that a failure names what is damaged, once.

use super::{chain_text, locked};
use imagefmt::Disk;
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
    ///
    /// # Errors
    /// What the client is told; the log and the exit code have it once.
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), ExportError> {
        self.disk
            .read_until_bad(offset, target)
            .map_err(|(at, error)| self.failures.report(at, error))
    }
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
