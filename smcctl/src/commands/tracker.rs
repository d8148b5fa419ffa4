//! `smcctl tracker`: which disks are tracked.

use crate::client::Request;
use crate::context::Context;
use crate::view;
use api::TrackerView;
use clap::Subcommand;
use std::process::ExitCode;

/// Show which disks are tracked, what was written to them, and whether the next sync can rely on it
///
/// The tracker notes in the kernel which parts of disks are written to, so that a sync reads only these. Where it cannot be
/// relied on, the next sync reads the whole disk; this command says why.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stop tracking: take the tracker out of the kernel
    ///
    /// It is refused while an unfinished job tracks its disks: `smcctl job modify NAME --tracking off` ends that.
    Remove,
}

/// Shows or removes it.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let request = match args.command {
        None => Request::get("/tracker"),
        Some(Command::Remove) => Request::delete("/tracker".to_owned()),
    };
    let answer = context.client.send(&request)?;
    context.tell(&answer, |paint, tracker: &TrackerView| {
        view::tracker::lines(paint, tracker)
    })?;
    Ok(ExitCode::SUCCESS)
}
