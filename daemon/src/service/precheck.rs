//! Whether this machine is ready to be migrated.

mod target;

use super::disks::disks_below;
use super::parts::Parts;
use crate::engine::Place;
use crate::job::Refused;
use crate::stores::ACTION_PATIENCE;
use api::{Check, Level, Precheck};
use std::path::Path;
use std::sync::Arc;
use tracker::Support;

/// Looks at the machine: at these disks, or all that can be migrated, and at where the images are to go.
///
/// # Errors
/// When it is not known which disks hold the store, or the store does not answer.
pub fn precheck(parts: &Arc<Parts>, place: &Place, disks: Vec<String>) -> Refused<Precheck> {
    let what = format!("the {place}");
    let at = place.clone();
    let below = parts.within(place, ACTION_PATIENCE, &what, move |_| disks_below(&at))?;
    // What else may hang, it asks with deadlines of its own.
    let target = place.target().map(|name| target::look(parts, name));
    let input = machine::PrecheckInput {
        store_disks: below,
        target: target.as_ref().and_then(|target| target.room.clone()),
        store: place.store().map(Path::to_owned),
        disks,
    };
    let mut found = machine::precheck(&machine::Root::system(), &input);
    found
        .checks
        .extend(target.into_iter().flat_map(|target| target.checks));
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
