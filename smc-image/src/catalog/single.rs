//! One opened disk as the only export.

use super::reporting::ReadFailures;
use super::served::ServedDisk;
use imagefmt::Disk;
use nbd::{Access, Catalog, Client, Export, ExportInfo, ServeError};
use std::sync::Arc;

/// Offers one disk, which its caller has opened, as the default export: nothing is looked up again, so nothing else
/// can be served in its place.
#[derive(Debug)]
pub struct SingleDisk {
    disk: Disk,
    failures: Arc<ReadFailures>,
}

impl SingleDisk {
    /// Offers `disk`.
    pub fn new(disk: Disk) -> Self {
        let failures = Arc::default();
        Self { disk, failures }
    }

    fn describe(&self) -> ExportInfo {
        ExportInfo {
            name: String::new(),
            description: Some(self.disk.label().to_owned()),
            size_bytes: self.disk.size_bytes(),
            preferred_block_bytes: self.disk.geometry().cluster_size().bytes(),
            access: Access::ReadOnly,
        }
    }

    /// What could not be read since it was made.
    pub fn failures(&self) -> &Arc<ReadFailures> {
        &self.failures
    }
}

impl Catalog for SingleDisk {
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError> {
        Ok(vec![self.describe()])
    }

    fn info(&self, name: &str, _: &Client) -> Result<ExportInfo, ServeError> {
        if !name.is_empty() {
            return Err(ServeError::not_found(name));
        }
        Ok(self.describe())
    }

    fn contexts(&self, _name: &str, _: &Client) -> Result<Vec<String>, ServeError> {
        Ok(Vec::new())
    }

    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn Export>, ServeError> {
        self.info(name, client)?;
        Ok(Arc::new(ServedDisk::new(self.disk.clone(), &self.failures)))
    }
}
