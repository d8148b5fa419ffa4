//! Whether this machine is ready to be migrated.

use super::disks::store_disks;
use super::parts::Parts;
use crate::job::Refused;
use crate::stores::ACTION_PATIENCE;
use api::{Check, Level, Precheck};
use std::path::PathBuf;
use std::sync::Arc;
use tracker::Support;

/// Looks at the machine: at these disks, or all that can be migrated, and the configured store if none is named.
///
/// # Errors
/// When it is not known which disks hold the store, or the store does not answer.
pub fn precheck(parts: &Arc<Parts>, store: Option<PathBuf>, disks: Vec<String>) -> Refused<Precheck> {
    let store = store.unwrap_or_else(|| parts.config.store.clone());
    let path = store.clone();
    let what = format!("the store {}", store.display());
    let below = parts.within(&store, ACTION_PATIENCE, &what, move |_| store_disks(&path))?;
    // What else may hang, it asks with deadlines of its own.
    let input = machine::PrecheckInput {
        store_disks: below,
        store: Some(store),
        disks,
    };
    let mut found = machine::precheck(&machine::Root::system(), &input);
    found.checks.push(tracking(parts));
    Ok(found)
}

/// Whether syncs can read only what was written to.
fn tracking(parts: &Parts) -> Check {
    match tracker::support(&parts.config.tracker) {
        Support::Available => Check {
            id: "tracking".to_owned(),
            level: Level::Ok,
            found: "disks can be tracked: a sync reads only what was written to since the one before"
                .to_owned(),
            advice: None,
        },
        Support::Unavailable { reason } => Check {
            id: "tracking".to_owned(),
            level: Level::Ok,
            found: format!("disks cannot be tracked, so every sync reads them completely: {reason}"),
            advice: None,
        },
    }
}
