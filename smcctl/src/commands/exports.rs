//! `smcctl exports`: images in use.

use crate::client::Request;
use crate::context::Context;
use crate::view;
use api::ExportView;
use std::process::ExitCode;

/// List the images that are in use, and the processes that use them
///
/// An image that is served, mounted, booted or pinned is not deleted.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Lists them.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &Context, _args: &Args) -> anyhow::Result<ExitCode> {
    let answer = context.client.send(&Request::get("/exports"))?;
    context.tell(&answer, |paint, exports: &Vec<ExportView>| {
        view::exports::lines(paint, exports)
    })?;
    Ok(ExitCode::SUCCESS)
}
