//! `smcctl job start`, `sync`, `confirm`, `stop`, `cancel` and `complete`: a job is told what to do.

use crate::client::{Request, job};
use crate::commands::job::name::JobName;
use crate::commands::job::wait::{self, Goal};
use crate::context::Context;
use crate::view;
use api::CompleteJob;
use std::process::ExitCode;

/// A job, and whether to wait.
#[derive(Debug, clap::Args)]
pub struct NamedArgs {
    #[command(flatten)]
    job: JobName,
    #[command(flatten)]
    wait: Wait,
}

/// A job to finish.
#[derive(Debug, clap::Args)]
pub struct CompleteArgs {
    #[command(flatten)]
    job: JobName,
    /// Run one last sync first
    #[arg(long)]
    last_sync: bool,
    /// Compare everything after the last sync, by reading the disks and the image, and finish the job only if it is the same
    #[arg(long, requires = "last_sync")]
    verify: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Whether to wait.
#[derive(Debug, clap::Args)]
struct Wait {
    /// Wait until no sync is running, and fail if the action did not succeed
    #[arg(long)]
    wait: bool,
}

/// Starts or resumes the job.
///
/// # Errors
/// When smcd does not answer, or refuses, the job does not get where it was to be waited for, or the output cannot be
/// written.
pub fn start(context: &mut Context, args: &NamedArgs) -> anyhow::Result<ExitCode> {
    act(context, args, "start", Goal::Synced)
}

/// Syncs now.
///
/// # Errors
/// When smcd does not answer, or refuses, the job does not get where it was to be waited for, or the output cannot be
/// written.
pub fn sync(context: &mut Context, args: &NamedArgs) -> anyhow::Result<ExitCode> {
    act(context, args, "sync", Goal::Synced)
}

/// Confirms a job that was found in a store.
///
/// # Errors
/// When smcd does not answer, or refuses, or the output cannot be written.
pub fn confirm(context: &mut Context, name: &JobName) -> anyhow::Result<ExitCode> {
    let request = Request::post(job(&name.name, Some("confirm")));
    send(context, &name.name, &request, None)
}

/// Stops.
///
/// # Errors
/// When smcd does not answer, or refuses, the job does not get where it was to be waited for, or the output cannot be
/// written.
pub fn stop(context: &mut Context, args: &NamedArgs) -> anyhow::Result<ExitCode> {
    act(context, args, "stop", Goal::Stopped)
}

/// Cancels the job.
///
/// # Errors
/// When smcd does not answer, or refuses, the job does not get where it was to be waited for, or the output cannot be
/// written.
pub fn cancel(context: &mut Context, args: &NamedArgs) -> anyhow::Result<ExitCode> {
    act(context, args, "cancel", Goal::Canceled)
}

/// Finishes the job.
///
/// # Errors
/// When smcd does not answer, or refuses, the job does not get where it was to be waited for, or the output cannot be
/// written.
pub fn complete(context: &mut Context, args: &CompleteArgs) -> anyhow::Result<ExitCode> {
    let wanted = CompleteJob {
        last_sync: args.last_sync,
        verify: args.verify,
    };
    let request = Request::post(job(&args.job.name, Some("complete"))).with(&wanted)?;
    send(
        context,
        &args.job.name,
        &request,
        args.wait.wait.then_some(Goal::Finished),
    )
}

fn act(context: &mut Context, args: &NamedArgs, what: &str, goal: Goal) -> anyhow::Result<ExitCode> {
    let request = Request::post(job(&args.job.name, Some(what)));
    send(context, &args.job.name, &request, args.wait.wait.then_some(goal))
}

/// Sends the request, and waits for its goal if there is one.
fn send(
    context: &mut Context,
    name: &str,
    request: &Request,
    goal: Option<Goal>,
) -> anyhow::Result<ExitCode> {
    let answer = context.client.send(request)?;
    let Some(goal) = goal else {
        context.tell(&answer, view::job::brief)?;
        return Ok(ExitCode::SUCCESS);
    };
    let answer = wait::until_idle(context, name, answer)?;
    context.tell(&answer, view::job::ended)?;
    goal.judge(&answer.view()?)?;
    Ok(ExitCode::SUCCESS)
}
