//! The targets that this machine knows: for `smcd target`, `smcd sync --target` and the service alike.

use anyhow::{Context, Result};
use api::{TargetStatus, TargetView};
use jiff::Timestamp;
use remote::{Error, ErrorKind, Invitation, SendLimit, TargetFiles};
use std::path::Path;
use std::thread;

/// Reads a limit of what is sent: `20MiB, 22:00-06:00 unlimited`.
///
/// # Errors
/// What is wrong, and how it is written.
pub fn parse_send_limit(text: &str) -> std::result::Result<SendLimit, String> {
    SendLimit::parse(text, cli::units::parse_rate)
}

/// Renews the certificate for a target if it is old.
///
/// # Errors
/// When the target does not renew it, or it cannot be read.
pub fn renew_if_old(files: &TargetFiles) -> Result<()> {
    remote::renew_if_old(files).with_context(|| format!("renew the certificate for target {}", files.name))
}

/// Until when the certificate for a target is good.
///
/// # Errors
/// When it cannot be read.
pub fn valid_until(files: &TargetFiles) -> remote::Result<Timestamp> {
    files.credentials()?.valid_until()
}

/// Has this machine enrolled at a target that has invited it; with `again`, at one that it knows already.
///
/// # Errors
/// `Invalid` for a name that cannot be one or that another target has, and for a line that is no invitation; those of the target.
pub fn add(directory: &Path, name: &str, line: &str, again: bool) -> remote::Result<TargetFiles> {
    match again {
        true => enrol_again(directory, name, line),
        false => add_new(directory, name, line),
    }
}

/// How an administrator makes this machine known to a target again whose certificate or key for it is of no use any more.
pub fn how_to_enrol_again(name: &str, source: &str) -> String {
    format!(
        "run `smc-store enrol {source} --again` there, and `smcctl target add {name} LINE --again` here with the line that it prints"
    )
}

/// This machine gets another key, and keeps what it knows of its images there: jobs continue with them.
fn enrol_again(directory: &Path, name: &str, line: &str) -> remote::Result<TargetFiles> {
    let files = TargetFiles::open(directory, name)?;
    let invitation: Invitation = line.parse()?;
    let source = &files.record.source;
    if invitation.source != *source {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "this machine is source {source} at target {name}, and the line invites source {}: `smc-store enrol {source} \
                 --again` there prints the right one",
                invitation.source
            ),
        ));
    }
    let (record, credentials) = remote::enrol(&invitation)?;
    files.replace(&record, &credentials)
}

fn add_new(directory: &Path, name: &str, line: &str) -> remote::Result<TargetFiles> {
    let invalid = |text: String| Error::new(ErrorKind::Invalid, text);
    imagefmt::check_name("target", name).map_err(|error| invalid(error.to_string()))?;
    let invitation: Invitation = line.parse()?;
    // The invitation can be used once: what can be known to fail fails before.
    if TargetFiles::all(directory)?
        .iter()
        .any(|known| known.name == name)
    {
        return Err(invalid(format!(
            "there is a target {name:?} already: choose another name, or enrol at that one again with --again"
        )));
    }
    let (record, credentials) = remote::enrol(&invitation)?;
    TargetFiles::add(directory, name, record, &credentials)
}

/// All targets, by name, and what they say. They are asked at the same time.
///
/// # Errors
/// Files that cannot be read.
pub fn list(directory: &Path) -> remote::Result<Vec<TargetView>> {
    let known = TargetFiles::all(directory)?;
    Ok(thread::scope(|scope| {
        let asked: Vec<_> = known
            .iter()
            .map(|files| (files, scope.spawn(|| show(files))))
            .collect();
        let unasked = |files: &TargetFiles| {
            view(
                files,
                Err("it could not be asked: this is a bug in smcd".to_owned()),
            )
        };
        asked
            .into_iter()
            .map(|(files, asked)| asked.join().unwrap_or_else(|_| unasked(files)))
            .collect()
    }))
}

/// A target, and what it says.
pub fn show(files: &TargetFiles) -> TargetView {
    let status = remote::status(files).map_err(|error| error.full_message());
    view(files, status)
}

fn view(files: &TargetFiles, status: std::result::Result<remote::Status, String>) -> TargetView {
    let (status, problem) = match status {
        Ok(status) => (Some(status), None),
        Err(problem) => (None, Some(problem)),
    };
    TargetView {
        name: files.name.clone(),
        address: files.record.address.clone(),
        source: files.record.source.clone(),
        valid_until: valid_until(files).ok(),
        used_by: None,
        status: status.map(|status| TargetStatus {
            clock_differs_s: status.clock_s.saturating_sub(Timestamp::now().as_second()),
            software: status.software,
            free_bytes: status.free_bytes,
            jobs: status.jobs,
        }),
        problem,
    }
}
