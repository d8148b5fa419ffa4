//! The targets that this machine knows: for `smcd target`, `smcd sync --target` and the service alike.

use anyhow::{Context, Result};
use api::{TargetStatus, TargetView};
use jiff::{SignedDuration, Timestamp};
use remote::{Error, ErrorKind, Invitation, SendLimit, TargetFiles};
use std::path::Path;
use std::thread;

/// A certificate that is good for less than this is renewed.
pub const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 30);

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
    if valid_until(files)?.duration_since(Timestamp::now()) < RENEW_BEFORE {
        remote::renew(files).with_context(|| format!("renew the certificate for target {}", files.name))?;
    }
    Ok(())
}

/// Until when the certificate for a target is good.
///
/// # Errors
/// When it cannot be read.
pub fn valid_until(files: &TargetFiles) -> Result<Timestamp> {
    Ok(certs::valid_until(&files.credentials()?.certificate)?)
}

/// Has this machine enrolled at a target that has invited it.
///
/// # Errors
/// `Invalid` for a name that cannot be one or that another target has, and for a line that is no invitation; those of the target.
pub fn add(directory: &Path, name: &str, line: &str) -> remote::Result<TargetFiles> {
    let invalid = |text: String| Error::new(ErrorKind::Invalid, text);
    imagefmt::check_name("target", name).map_err(|error| invalid(error.to_string()))?;
    let invitation: Invitation = line.parse()?;
    // The invitation can be used once: what can be known to fail fails before.
    if TargetFiles::all(directory)?
        .iter()
        .any(|known| known.name == name)
    {
        return Err(invalid(format!(
            "there is a target {name:?} already: choose another name, or remove that one first"
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
