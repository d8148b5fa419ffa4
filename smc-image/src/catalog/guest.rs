//! All disks of an opened image for one guest or one mount, which may write to them.

use super::chain_text;
use super::reporting::ReadFailures;
use super::served::ServedDisk;
use imagefmt::Image;
use nbd::{Access, Catalog, Client, Export, ExportInfo, Overlay, ServeError, Space};
use std::path::Path;
use std::sync::Arc;

/// Offers every disk of an image by its name, each in an overlay of its own. The image does not change.
#[derive(Debug)]
pub struct GuestDisks {
    disks: Vec<(ExportInfo, Arc<Overlay>)>,
    failures: Arc<ReadFailures>,
}

impl GuestDisks {
    /// Offers the disks of `image`. What is written has `limit_bytes` of space: `memory_bytes` in memory, and the rest in a
    /// file without a name in `directory`.
    ///
    /// # Errors
    /// When that file cannot be made.
    pub fn new(
        image: &Image,
        directory: &Path,
        memory_bytes: u64,
        limit_bytes: u64,
    ) -> Result<Self, ServeError> {
        let space = Space::new(directory, memory_bytes, limit_bytes)?;
        let failures = Arc::<ReadFailures>::default();
        let offer = |disk: &imagefmt::Disk| {
            let info = ExportInfo {
                name: disk.name().to_owned(),
                description: Some(disk.label().to_owned()),
                size_bytes: disk.size_bytes(),
                preferred_block_bytes: disk.geometry().cluster_size().bytes(),
                access: Access::Writable { shared: false },
            };
            let base = Arc::new(ServedDisk::new(disk.clone(), &failures));
            (info, Arc::new(Overlay::new(base, &space)))
        };
        Ok(Self {
            disks: image.disks().iter().map(offer).collect(),
            failures: Arc::clone(&failures),
        })
    }

    /// Each disk with its description.
    pub fn disks(&self) -> &[(ExportInfo, Arc<Overlay>)] {
        &self.disks
    }

    /// Why the guest could not read something, if it could not.
    pub fn failure(&self) -> Option<String> {
        self.failures.take_first().map(|error| chain_text(&error))
    }

    fn find(&self, name: &str) -> Result<&(ExportInfo, Arc<Overlay>), ServeError> {
        let mut disks = self.disks.iter();
        disks
            .find(|(info, _)| info.name == name)
            .ok_or_else(|| ServeError::not_found(name))
    }
}

impl Catalog for GuestDisks {
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError> {
        Ok(self.disks.iter().map(|(info, _)| info.clone()).collect())
    }

    fn info(&self, name: &str, _: &Client) -> Result<ExportInfo, ServeError> {
        self.find(name).map(|(info, _)| info.clone())
    }

    fn open(&self, name: &str, _: &Client) -> Result<Arc<dyn Export>, ServeError> {
        self.find(name)
            .map(|(_, overlay)| overlay.clone() as Arc<dyn Export>)
    }
}
