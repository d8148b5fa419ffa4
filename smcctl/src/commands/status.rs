//! `smcctl status`: the daemon.

use crate::client::Request;
use crate::context::Context;
use crate::view;
use jiff::Timestamp;
use std::process::ExitCode;

/// Show the daemon: version, store, jobs by state, the next sync
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Fails where the daemon does not answer.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, _args: &Args) -> anyhow::Result<ExitCode> {
    let answer = context.client.send(&Request::get("/status"))?;
    let now = Timestamp::now();
    context.tell(&answer, |paint, status| view::status::lines(paint, status, now))?;
    Ok(ExitCode::SUCCESS)
}
