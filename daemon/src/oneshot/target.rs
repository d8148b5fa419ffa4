//! `smcd target`: which targets this machine knows; and the one that a sync sends its image to.

use super::say_held_up;
use crate::args::{SyncArgs, TargetArgs, TargetCommand};
use crate::engine::{self, Control, Target, WaitForTarget};
use anyhow::{Context, Result, bail};
use cli::output;
use cli::table::{Align, Table};
use cli::text::printable;
use cli::units;
use jiff::{SignedDuration, Timestamp};
use remote::{Invitation, LinkOptions, Rate, TargetFiles};
use serde::Serialize;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// How long a certificate is good, and after how much of that it is renewed.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 30);

/// The target of a sync. Its certificate is renewed first if it is old.
///
/// # Errors
/// `Refused` for a target that this machine does not know, or files of it that cannot be used.
pub(super) fn open(args: &SyncArgs, name: &str, control: &Arc<Control>) -> engine::Result<Target> {
    let refused = |error: remote::Error| engine::Error::refused(anyhow::Error::from(error));
    let files = TargetFiles::open(&args.targets_directory, name).map_err(refused)?;
    if let Err(error) = renew_if_old(&files) {
        output::complain(format_args!(
            "smcd: the certificate for target {name} is not renewed: {error:#}"
        ));
    }
    Ok(Target {
        files,
        options: LinkOptions {
            lanes: args.connections,
            patience: args.target_timeout,
            rate: Arc::new(Rate::new(args.send_limit.clone().unwrap_or_default())),
            meter: Arc::default(),
        },
        wait: Arc::new(WaitForTarget {
            control: control.clone(),
            say: say_held_up,
        }),
    })
}

fn renew_if_old(files: &TargetFiles) -> Result<()> {
    let until = certs::valid_until(&files.credentials()?.certificate)?;
    if until.duration_since(Timestamp::now()) < RENEW_BEFORE {
        remote::renew(files)?;
    }
    Ok(())
}

/// Does what `smcd target` asks for.
///
/// # Errors
/// That of the command.
pub fn target(args: &TargetArgs) -> Result<()> {
    let directory = &args.targets_directory;
    match &args.command {
        TargetCommand::Add { name, line } => add(directory, name, line),
        TargetCommand::Ls { json } => list(directory, *json),
        TargetCommand::Renew { name } => {
            let files = TargetFiles::open(directory, name)?;
            remote::renew(&files)?;
            let until = certs::valid_until(&files.credentials()?.certificate)?;
            output::line(format_args!(
                "the certificate for target {name} is valid until {}",
                units::local_date(until)
            ))
        }
        TargetCommand::Rm { name } => {
            TargetFiles::open(directory, name)?.remove()?;
            output::line(format_args!(
                "target {name} is forgotten here; `smc-store revoke` there takes this machine's rights"
            ))
        }
    }
}

fn add(directory: &Path, name: &str, line: &str) -> Result<()> {
    imagefmt::check_name("target", name)?;
    let mut text = line.to_owned();
    if line == "-" {
        text.clear();
        std::io::stdin()
            .take(4096)
            .read_to_string(&mut text)
            .context("read the line from standard input")?;
    }
    let invitation: Invitation = text.parse()?;
    // The invitation can be used once: what can be known to fail fails before.
    if TargetFiles::all(directory)?
        .iter()
        .any(|known| known.name == name)
    {
        bail!(
            "there is a target {name:?} already: choose another name, or remove it first with `smcd target rm {name}`"
        );
    }
    let (record, credentials) = remote::enrol(&invitation)?;
    let files = TargetFiles::add(directory, name, record, &credentials)?;
    output::line(format_args!(
        "this machine is source {} of target {name} at {}: smcd sync --target {name} ...",
        files.record.source, files.record.address
    ))
}

/// A target as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    address: String,
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_until: Option<Timestamp>,
    /// What it says; absent where it cannot be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<remote::Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_differs_s: Option<i64>,
}

fn show(files: &TargetFiles) -> Shown {
    let (status, problem) = match remote::status(files) {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(error.full_message())),
    };
    let credentials = files.credentials().ok();
    Shown {
        name: files.name.clone(),
        address: files.record.address.clone(),
        source: files.record.source.clone(),
        valid_until: credentials.and_then(|own| certs::valid_until(&own.certificate).ok()),
        clock_differs_s: status
            .as_ref()
            .map(|status| status.clock_s - Timestamp::now().as_second()),
        status,
        problem,
    }
}

fn list(directory: &Path, json: bool) -> Result<()> {
    let shown: Vec<Shown> = TargetFiles::all(directory)?.iter().map(show).collect();
    if json {
        return output::json(&serde_json::json!({ "targets": shown }));
    }
    if shown.is_empty() {
        return output::line(
            "this machine knows no target: `smc-store enrol` there prints the line for `smcd target add`",
        );
    }
    let columns = [
        "TARGET",
        "ADDRESS",
        "SOURCE",
        "CERTIFICATE UNTIL",
        "FREE THERE",
        "JOBS THERE",
    ];
    let mut table = Table::new(&columns.map(|column| (column, Align::Left)));
    for target in &shown {
        let until = target.valid_until.map_or("?".to_owned(), units::local_date);
        let (free, jobs) = match &target.status {
            Some(status) => (units::size(status.free_bytes), jobs_of(status)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        table.row([
            target.name.clone(),
            target.address.clone(),
            target.source.clone(),
            until,
            free,
            jobs,
        ]);
        if let Some(problem) = &target.problem {
            table.note(format!("  {}: {}", target.name, printable(problem)));
        }
        // What a clock says is shown, and compared with nothing.
        if let Some(differs) = target.clock_differs_s.filter(|differs| differs.abs() > 60) {
            table.note(format!(
                "  the clock of {} differs by {} s: retention there goes by that clock",
                target.name, differs
            ));
        }
    }
    table.print()
}

fn jobs_of(status: &remote::Status) -> String {
    if status.jobs.is_empty() {
        return "none".to_owned();
    }
    let jobs = status
        .jobs
        .iter()
        .map(|(job, newest)| format!("{}/{newest}", printable(job)));
    jobs.collect::<Vec<_>>().join(" ")
}
