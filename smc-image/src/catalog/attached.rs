//! An export as one connection has it, with what is kept for its client.

use super::kept::Use;
use imagefmt::{ImageId, Lock};
use nbd::{Client, Export, ExportError, Extent, Overlay, Ready, Zeroing};
use std::sync::Arc;

/// Of which job a client has opened the latest image.
pub(super) type Follower = (Client, String);

/// The image that was the latest when the first of a client's connections opened it.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) image: ImageId,
    /// It is there for a client that comes back.
    pub(super) _held: Lock,
}

/// An export, and what is kept for the connection's client.
pub(super) struct Attached {
    pub(super) export: Arc<dyn Export>,
    /// What `latest` means to the client.
    pub(super) latest: Option<Use<Follower, Bound>>,
    /// The overlay that the export is, where it has no name.
    pub(super) overlay: Option<Use<String, Overlay>>,
}

impl Export for Attached {
    fn size_bytes(&self) -> u64 {
        self.export.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        self.export.read_at(offset, buf)
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Ready {
        self.export.try_read_at(offset, buf)
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        self.export.extents(offset, length)
    }

    fn status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        self.export.status(context, offset, length)
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.export.cache(offset, length)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        self.export.write_at(offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), ExportError> {
        self.export.write_zeroes(offset, length, how)
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.export.trim(offset, length)
    }

    fn flush(&self) -> Result<(), ExportError> {
        self.export.flush()
    }

    fn leave(&self) {
        if let Some(latest) = &self.latest {
            latest.leave();
        }
        if let Some(overlay) = &self.overlay {
            overlay.leave();
        }
    }
}
