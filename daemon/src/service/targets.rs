//! Targets of jobs, as the service asks them. A target may answer slowly: each caller has a thread for that.

use super::parts::Parts;
use super::table::Locked;
use crate::job::{Refusal, Refused};
use crate::targets;
use api::{AddTarget, TargetList, TargetView};
use remote::{ErrorKind, TargetFiles};
use std::time::Duration;

/// How long a user waits for a target: it says itself that it does not answer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of a target.
///
/// # Errors
/// `Invalid` for a name that no target has, with what to do; `Io` for files that cannot be read.
pub fn open(parts: &Parts, name: &str) -> remote::Result<TargetFiles> {
    TargetFiles::open(&parts.config.targets(), name)
}

/// Why a request about a target is refused.
pub fn refusal(error: &remote::Error) -> Refusal {
    match error.kind() {
        ErrorKind::Invalid => Refusal::invalid(error.full_message()),
        _ => Refusal::conflict(error.full_message()),
    }
}

/// All targets, what they say, and which jobs use them. Waits for those that do not answer.
///
/// # Errors
/// When their files cannot be read.
pub fn list(parts: &Parts) -> Refused<TargetList> {
    let mut targets = targets::list(&parts.config.targets()).map_err(|error| refusal(&error))?;
    let table = parts.table.lock();
    for target in &mut targets {
        target.used_by = Some(users(&table, &target.name));
    }
    Ok(TargetList { targets })
}

/// Has this machine enrolled at a target that has invited it.
///
/// # Errors
/// `Invalid` for a name that cannot be one or is taken, and for a line that is no invitation; what the target says.
pub fn add(parts: &Parts, request: &AddTarget) -> Refused<TargetView> {
    let added = targets::add(
        &parts.config.targets(),
        &request.name,
        &request.line,
        request.again,
    );
    let files = added.map_err(|error| refusal(&error))?;
    tracing::info!(
        target = files.name,
        "this machine is source {} at {}",
        files.record.source,
        files.record.address
    );
    Ok(shown(parts, &files))
}

/// Has a target sign a new key.
///
/// # Errors
/// `NotFound` for a target that there is not; what the target says.
pub fn renew(parts: &Parts, name: &str) -> Refused<TargetView> {
    let files = known(parts, name)?;
    remote::renew(&files).map_err(|error| refusal(&error))?;
    Ok(shown(parts, &files))
}

/// Forgets a target.
///
/// # Errors
/// `NotFound` for a target that there is not; `Conflict` while a job may sync to it, with its name.
pub fn remove(parts: &Parts, name: &str) -> Refused<()> {
    let files = known(parts, name)?;
    // No job is created meanwhile. The files lie beside the state, which is written under the same mutex.
    let table = parts.table.lock();
    if let [first, ..] = users(&table, name).as_slice() {
        return Err(Refusal::conflict(format!(
            "job {first} sends its images to target {name}: complete, cancel or delete it first"
        )));
    }
    files.remove().map_err(|error| Refusal::failed(&error.into()))?;
    tracing::info!(target = name, "the target is forgotten");
    Ok(())
}

fn known(parts: &Parts, name: &str) -> Refused<TargetFiles> {
    open(parts, name).map_err(|error| match error.kind() {
        ErrorKind::Invalid => Refusal::not_found(error.full_message()),
        _ => refusal(&error),
    })
}

fn shown(parts: &Parts, files: &TargetFiles) -> TargetView {
    let mut view = targets::show(files);
    view.used_by = Some(users(&parts.table.lock(), &files.name));
    view
}

/// The jobs that may sync to a target.
fn users(table: &Locked<'_>, name: &str) -> Vec<String> {
    let jobs = table.jobs().values();
    let uses = jobs.filter(|job| job.place.target() == Some(name) && job.status.is_unfinished());
    uses.map(|job| job.name.clone()).collect()
}
