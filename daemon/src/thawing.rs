//! The commands that thaw: the watchdog beside a process that freezes, and the last resort after both have died.

use crate::args::{self, WatchdogArgs};
use anyhow::Result;
use std::path::Path;

/// Thaws what is listed by processes that have died, and says what was frozen.
///
/// # Errors
/// A filesystem that cannot be thawed.
pub fn thaw(lists: &Path) -> Result<()> {
    for mount_point in freeze::thaw_listed(lists)? {
        args::print(&format!("{} was frozen, and is thawed\n", mount_point.display()))?;
    }
    Ok(())
}

/// Is the watchdog of the process that started this one, until it is not needed any more.
///
/// # Errors
/// It cannot begin.
pub fn watch(args: &WatchdogArgs) -> Result<()> {
    freeze::watch(&freeze::WatchdogArgs {
        list: args.list.clone(),
        own_cgroup: args.own_cgroup,
        descriptors: args.descriptors.clone(),
    })?;
    Ok(())
}
