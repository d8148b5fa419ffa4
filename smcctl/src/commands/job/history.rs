//! `smcctl job history`: the runs of a job.

use crate::client::{Request, job, with_query};
use crate::commands::job::name::JobName;
use crate::context::Context;
use crate::view;
use api::RunView;
use std::process::ExitCode;

/// List the runs of a job, newest first
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobName,
    /// Largest number of runs to list
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// Lists them.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let limit = args.limit.map(|limit| limit.to_string());
    let query = limit.as_deref().map(|limit| ("limit", limit));
    let runs = Request::get(with_query(&job(&args.job.name, Some("runs")), query));
    let answer = context.client.send(&runs)?;
    context.tell(&answer, |paint, runs: &Vec<RunView>| {
        view::run::table(paint, runs)
    })?;
    Ok(ExitCode::SUCCESS)
}
