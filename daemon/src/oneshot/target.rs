//! `smcd target`: which targets this machine knows; and the one that a sync sends its image to.

use super::say_held_up;
use crate::args::{SyncArgs, TargetArgs, TargetCommand};
use crate::engine::{self, Control, Target, WaitForTarget};
use crate::targets::{self, renew_if_old, valid_until};
use anyhow::Result;
use api::TargetList;
use clap::ColorChoice;
use cli::output;
use cli::paint::Paint;
use cli::units;
use remote::{LinkOptions, Rate, TargetFiles, TargetRecord};
use std::path::Path;
use std::sync::Arc;

/// The target of a sync. Its certificate is renewed first if it is old.
///
/// # Errors
/// `Refused` for a target that this machine does not know, or files of it that cannot be used.
pub(super) fn open(args: &SyncArgs, name: &str, control: &Arc<Control>) -> engine::Result<Target> {
    let refused = |error: remote::Error| engine::Error::refused(anyhow::Error::from(error));
    let files = TargetFiles::open(&args.targets_directory, name).map_err(refused)?;
    if let Err(error) = renew_if_old(&files) {
        output::complain(format_args!("smcd: {error:#}"));
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

/// Does what `smcd target` asks for.
///
/// # Errors
/// That of the command.
pub fn target(args: &TargetArgs) -> Result<()> {
    let directory = &args.targets_directory;
    match &args.command {
        TargetCommand::Add { name, line, again } => add(directory, name, line, *again),
        TargetCommand::Ls { json } => list(directory, *json),
        TargetCommand::Renew { name } => {
            let files = TargetFiles::open(directory, name)?;
            remote::renew(&files)?;
            let until = valid_until(&files)?;
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

fn add(directory: &Path, name: &str, line: &str, again: bool) -> Result<()> {
    let files = targets::add(directory, name, &cli::targets::invitation(line)?, again)?;
    let TargetRecord {
        address,
        source,
        role,
    } = &files.record;
    match role.as_str() {
        "pull" => output::line(format_args!(
            "this machine is {source} at target {name} at {address}, and may read images there: smc-image pull {name} DIR"
        )),
        _ => output::line(format_args!(
            "this machine is source {source} of target {name} at {address}: smcd sync --target {name} ..."
        )),
    }
}

fn list(directory: &Path, json: bool) -> Result<()> {
    let targets = targets::list(directory)?;
    if json {
        return output::json(&TargetList { targets });
    }
    let lines = cli::targets::lines(Paint::for_stdout(ColorChoice::Auto), &targets, "smcd target add");
    lines.iter().try_for_each(|line| output::painted(line))
}
