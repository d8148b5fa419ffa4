//! `smcctl job ls`: all jobs.

use crate::client::Request;
use crate::context::Context;
use crate::view;
use api::JobView;
use std::process::ExitCode;

/// List jobs: state, next event, last sync
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Lists them.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, _args: &Args) -> anyhow::Result<ExitCode> {
    let answer = context.client.send(&Request::get("/jobs"))?;
    context.tell(&answer, |paint, jobs: &Vec<JobView>| {
        view::jobs::lines(paint, jobs)
    })?;
    Ok(ExitCode::SUCCESS)
}
