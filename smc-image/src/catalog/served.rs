//! One disk as NBD serves it.

use super::changes::{self, CHANGED};
use super::images::Images;
use super::reporting::{ReadFailures, ReportingDisk};
use super::{chain_text, locked};
use imagefmt::{Disk, ImageId, TryRead};
use nbd::{Export, ExportError, FailureKind, Ready};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Extents of one answer; a client asks again for what lies behind them.
const EXTENTS_MAX: usize = 4096;

/// A disk of an image, read-only.
#[derive(Debug)]
pub(super) struct ServedDisk {
    disk: ReportingDisk,
    /// What meta contexts compare with; where there are none, the disk alone is served.
    others: Option<Others>,
}

/// The images that a disk is compared with.
#[derive(Debug)]
struct Others {
    image: ImageId,
    images: Arc<Images>,
    /// Opened when they are first asked for.
    opened: Mutex<HashMap<String, Disk>>,
}

impl ServedDisk {
    /// A disk alone.
    pub(super) fn new(disk: Disk, failures: &Arc<ReadFailures>) -> Self {
        let disk = ReportingDisk::new(disk, Arc::clone(failures));
        Self { disk, others: None }
    }

    /// A disk of `image`, which can be compared with other images.
    pub(super) fn among(
        disk: Disk,
        image: ImageId,
        images: &Arc<Images>,
        failures: &Arc<ReadFailures>,
    ) -> Self {
        let others = Others {
            image,
            images: Arc::clone(images),
            opened: Mutex::default(),
        };
        Self {
            others: Some(others),
            ..Self::new(disk, failures)
        }
    }

    fn inner(&self) -> &Disk {
        self.disk.disk()
    }

    fn report(&self, offset: u64, error: imagefmt::Error) -> ExportError {
        self.disk.failures().report(offset, error)
    }

    /// The disk that a context compares with.
    fn compared_with(&self, context: &str) -> Result<Disk, ExportError> {
        let unknown = || {
            let text = format!("this export does not know the meta context {context}");
            ExportError::new(FailureKind::Invalid, 0, text)
        };
        let others = self.others.as_ref().ok_or_else(unknown)?;
        if let Some(known) = locked(&others.opened).get(context) {
            return Ok(known.clone());
        }
        let failed = |error: imagefmt::Error| ExportError::io(0, chain_text(&error));
        let (images, image) = (&others.images, &others.image);
        let image = changes::compared(&images.store, image, context).map_err(failed)?;
        let image = image.ok_or_else(unknown)?;
        let disk = images.disk(&image, self.inner().name()).map_err(failed)?;
        locked(&others.opened).insert(context.to_owned(), disk.clone());
        Ok(disk)
    }
}

impl Export for ServedDisk {
    fn size_bytes(&self) -> u64 {
        self.inner().size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        self.disk.read(offset, buf)
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Ready {
        match self.inner().try_read_at(offset, buf) {
            TryRead::Wait => Ready::No,
            TryRead::Data => Ready::Data,
            TryRead::Zeros => Ready::Zeros,
        }
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<nbd::Extent>, ExportError> {
        let range = |extent: &imagefmt::Extent| {
            if extent.data {
                nbd::Extent::data(extent.length)
            } else {
                nbd::Extent::hole(extent.length)
            }
        };
        let found = self.inner().extents(offset, length, EXTENTS_MAX);
        let found = found.map_err(|error| self.report(offset, error))?;
        Ok(found.iter().map(range).collect())
    }

    fn status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<nbd::Extent>, ExportError> {
        let range = |length, changed| nbd::Extent {
            length,
            flags: if changed { CHANGED } else { 0 },
        };
        let other = self.compared_with(context)?;
        let found = self.inner().changed(&other, offset, length, EXTENTS_MAX);
        let found = found.map_err(|error| self.report(offset, error))?;
        Ok(found
            .iter()
            .map(|change| range(change.length, change.changed))
            .collect())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        // A client that reads it gets the error; a client that was merely guessed to do so need not.
        let ready = self.inner().cache(offset, length);
        ready.map_err(|error| ExportError::io(offset, chain_text(&error)))
    }
}
