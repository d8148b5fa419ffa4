//! `smcctl disks`: the machine's disks.

use crate::client::{Request, with_query};
use crate::context::Context;
use crate::{values, view};
use std::process::ExitCode;

/// List the disks of this server: which ones a job with --all includes, and why not the others
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the store; the disk that it is on cannot be imaged [default: the store in smcd's configuration]
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    store: Option<String>,
}

/// Lists them.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let answer = context.client.send(&request(args.store.as_deref()))?;
    context.tell(&answer, view::disks::lines)?;
    Ok(ExitCode::SUCCESS)
}

/// Asks for the disks, as seen by a job with this store.
pub fn request(store: Option<&str>) -> Request {
    Request::get(with_query("/disks", store.map(|store| ("store", store)))).slow()
}
