//! `smcctl precheck`: is this machine ready?

use crate::client::{Request, with_query};
use crate::commands::estimate::Place;
use crate::context::Context;
use api::{Level, Precheck};
use std::process::ExitCode;

/// Check whether this server can be migrated and would boot elsewhere
///
/// Every finding says what to do about it. The exit code is 1 if a finding is critical.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// A disk to migrate; may be repeated [default: all disks that can be migrated]
    #[arg(long = "disk", value_name = "NAME")]
    disks: Vec<String>,
}

/// Prints the findings, and fails if one is critical.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let query = args
        .place
        .query()
        .chain(args.disks.iter().map(|disk| ("disk", disk.as_str())));
    let answer = context
        .client
        .send(&Request::get(with_query("/precheck", query)).slow())?;
    context.tell(&answer, cli::findings::lines)?;
    match answer.view::<Precheck>()?.worst() {
        Level::Critical => Ok(ExitCode::FAILURE),
        Level::Ok | Level::Warning => Ok(ExitCode::SUCCESS),
    }
}
