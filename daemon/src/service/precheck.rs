//! Whether this machine is ready to be migrated.

use super::disks::store_disks;
use super::manager::Manager;
use crate::job::Refused;
use api::Precheck;
use std::path::PathBuf;

impl Manager {
    /// Looks at the machine: at these disks, or all that can be migrated, and the configured store if none is named.
    ///
    /// # Errors
    /// When it is not known which disks hold the store.
    pub fn precheck(&self, store: Option<PathBuf>, disks: Vec<String>) -> Refused<Precheck> {
        let store = store.unwrap_or_else(|| self.config.store.clone());
        let input = machine::PrecheckInput {
            store_disks: store_disks(&store)?,
            store: Some(store),
            disks,
        };
        Ok(machine::precheck(&machine::Root::system(), &input))
    }
}
