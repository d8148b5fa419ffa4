//! `smcctl disks`: the machine's disks.

use crate::client::{Request, with_query};
use crate::context::Context;
use crate::{values, view};
use std::process::ExitCode;

/// List the disks of this server: which a job of all disks takes, and why not the others
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the store, whose own disk cannot be imaged into it [default: the one smcd is configured with]
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    store: Option<String>,
}

/// Lists them.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let answer = context.client.send(&request(args.store.as_deref()))?;
    context.tell(&answer, view::disks::lines)?;
    Ok(ExitCode::SUCCESS)
}

/// Asks for the disks, as seen by a job with this store.
pub fn request(store: Option<&str>) -> Request {
    Request::get(with_query("/disks", store.map(|store| ("store", store)))).slow()
}
