//! `smcd tracker`: what the tracker watches, without the service.

use crate::args::{TrackerArgs, TrackerCommand};
use crate::config::Config;
use crate::service::tracking;
use ::tracker::Tracker;
use anyhow::{Context, Result, bail};
use api::{TrackedDisk, TrackerView};
use cli::output;
use cli::units::{local_time, size};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;

/// Shows the tracker, or removes it.
///
/// # Errors
/// While the service runs, it does not remove it; otherwise when the kernel refuses, or the output cannot be written.
pub fn tracker(args: &TrackerArgs) -> Result<()> {
    if args.command == Some(TrackerCommand::Remove) {
        refuse_beside_service()?;
        Tracker::remove(&args.tracker_directory).context("remove the tracker")?;
    }
    let view = tracking::read(&args.tracker_directory, &BTreeMap::new());
    let printed = if args.json {
        output::json(&view)
    } else {
        print(&view)
    };
    output::unless_closed(printed)
}

fn refuse_beside_service() -> Result<()> {
    let socket = Config::load(None).map_or_else(|_| api::DEFAULT_SOCKET.into(), |config| config.socket);
    if UnixStream::connect(&socket).is_ok() {
        bail!(
            "the service runs, and its jobs may use the tracker: run 'smcctl tracker remove' instead, or stop the service first"
        );
    }
    Ok(())
}

fn print(view: &TrackerView) -> Result<()> {
    match (&view.unavailable_reason, view.disks.is_empty()) {
        (Some(reason), _) => output::line(format_args!("this machine cannot track disks: {reason}"))?,
        (None, true) => output::line("no disk is tracked")?,
        (None, false) => {}
    }
    for disk in &view.disks {
        output::line(format_args!("{}", described(disk)))?;
    }
    view.problem.iter().try_for_each(output::line)
}

fn described(disk: &TrackedDisk) -> String {
    let next = match &disk.doubt {
        None => "reads what was written".to_owned(),
        Some(doubt) => format!("reads all of it: {doubt}"),
    };
    format!(
        "{}: tracked since {}, {} written since the last sync; the next sync {next}",
        disk.name,
        local_time(disk.since),
        size(disk.dirty_bytes)
    )
}
