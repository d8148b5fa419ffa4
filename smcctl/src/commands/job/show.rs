//! `smcctl job show`: everything about a job.

use crate::client::{Request, job};
use crate::commands::job::name::JobName;
use crate::context::Context;
use crate::view;
use std::process::ExitCode;

/// Show everything about a job
///
/// What happens next and when, the progress of a running sync, how long the last sync would take if services
/// were stopped now, parameters, images and the last run.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobName,
}

/// Shows it.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let answer = context.client.send(&Request::get(job(&args.job.name, None)))?;
    context.tell(&answer, view::job::full)?;
    Ok(ExitCode::SUCCESS)
}
