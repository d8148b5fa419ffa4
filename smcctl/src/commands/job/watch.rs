//! `smcctl job watch`: a live view on a terminal, elsewhere a line whenever something changes.

use crate::client::{Request, job};
use crate::commands::job::screen::{POLL, Screen, Seen};
use crate::context::Context;
use api::Status;
use clap::builder::NonEmptyStringValueParser;
use cli::interrupt::Interrupted;
use std::process::ExitCode;

/// Watch a job, or all jobs
///
/// On a terminal, two bars show the progress of a running sync: comparing is limited by the disk, storing by the
/// amount of change. Otherwise a line is printed whenever something changes; with --json, the job. Ctrl-C ends it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the job [default: all jobs]
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// End when no sync is running; the exit code is 1 if a job is then InError
    #[arg(long)]
    until_idle: bool,
}

/// Watches until somebody asks to stop.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn run(context: &mut Context, args: &Args) -> anyhow::Result<ExitCode> {
    context.client.catch_interrupts()?;
    match watch(context, args) {
        Err(error) if error.is::<Interrupted>() => Ok(ExitCode::SUCCESS),
        ended => ended,
    }
}

fn watch(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let mut screen = Screen::new(context);
    loop {
        let jobs = jobs(context, args.name.as_deref())?;
        screen.show(&jobs)?;
        let any = |status: Status| jobs.iter().any(|(job, _)| job.status == status);
        if args.until_idle && !any(Status::Running) {
            return Ok(if any(Status::InError) {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            });
        }
        context.client.pause(POLL)?;
    }
}

fn jobs(context: &Context, name: Option<&str>) -> anyhow::Result<Vec<Seen>> {
    let answers = match name {
        Some(name) => vec![context.client.send(&Request::get(job(name, None)))?],
        None => context.client.send(&Request::get("/jobs"))?.items()?,
    };
    answers
        .into_iter()
        .map(|answer| Ok((answer.view()?, answer)))
        .collect()
}
