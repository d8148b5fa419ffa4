//! Whether this machine is ready to be migrated.

use super::disks::store_disks;
use super::manager::Manager;
use crate::job::{Refusal, Refused};
use api::Precheck;
use std::path::PathBuf;

impl Manager {
    /// Looks at the machine. `query` is that of the request: `store=DIR`, and `disk=NAME` for each disk.
    pub fn precheck(&self, query: &str) -> Refused<Precheck> {
        let mut store = self.config.store.clone();
        let mut disks = Vec::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "store" => store = PathBuf::from(&*value),
                "disk" => disks.push(value.into_owned()),
                other => {
                    let other = other.escape_debug();
                    return Err(Refusal::invalid(format!(
                        "there is no parameter {other}: only store and disk are allowed"
                    )));
                }
            }
        }
        let input = machine::PrecheckInput {
            store_disks: store_disks(&store)?,
            store: Some(store),
            disks,
        };
        Ok(machine::precheck(&machine::Root::system(), &input))
    }
}
