//! `smcctl disks`: the machine's disks.

use crate::client::{Request, with_query};
use crate::commands::estimate::Place;
use crate::context::Context;
use crate::view;
use std::process::ExitCode;

/// List the disks of this server: which ones a job with --all includes, and why not the others
///
/// The disk that the store is on cannot be imaged.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

/// Lists them.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let answer = context.client.send(&request(&args.place))?;
    context.tell(&answer, view::disks::lines)?;
    Ok(ExitCode::SUCCESS)
}

/// Asks for the disks, as seen by a job whose images go there.
pub fn request(place: &Place) -> Request {
    Request::get(with_query("/disks", place.query())).slow()
}
