//! `smcctl job`: one module for what is asked of a job, with its arguments.

mod action;
mod checks;
mod create;
mod delete;
mod history;
mod list;
mod modify;
mod name;
mod screen;
mod show;
mod wait;
mod watch;

use crate::commands::job::action::{CompleteArgs, NamedArgs};
use crate::commands::job::name::JobName;
use crate::context::Context;
use clap::Subcommand;
use std::process::ExitCode;

/// The commands for jobs.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    Create(create::Args),
    Ls(list::Args),
    Show(show::Args),
    /// Start the first sync, or resume after a stop or an error
    Start(NamedArgs),
    /// Run an incremental sync now
    Sync(NamedArgs),
    /// Confirm a job that smcd found in a store
    ///
    /// After smcd's state was lost, a job that nothing proves to be this machine's starts no sync before it is confirmed:
    /// anybody who can write to the store may have changed its disks and hooks. Check them with `job show` first.
    Confirm(JobName),
    /// Stop syncing for now
    ///
    /// What a running sync has stored is kept; `start` resumes it.
    Stop(NamedArgs),
    /// Cancel the job for good
    ///
    /// What an unfinished sync has stored is discarded; the images remain.
    Cancel(NamedArgs),
    Modify(modify::Args),
    /// Finish the job: there are no more syncs; its images remain
    ///
    /// At the cutover: stop the services, then complete the job with --last-sync.
    Complete(CompleteArgs),
    Delete(delete::Args),
    Watch(watch::Args),
    History(history::Args),
}

/// Executes the command.
///
/// # Errors
/// That of the command.
pub fn run(context: &mut Context, command: &JobCommand) -> anyhow::Result<ExitCode> {
    match command {
        JobCommand::Create(args) => create::run(context, args),
        JobCommand::Ls(args) => list::run(context, args),
        JobCommand::Show(args) => show::run(context, args),
        JobCommand::Start(args) => action::start(context, args),
        JobCommand::Sync(args) => action::sync(context, args),
        JobCommand::Confirm(args) => action::confirm(context, args),
        JobCommand::Stop(args) => action::stop(context, args),
        JobCommand::Cancel(args) => action::cancel(context, args),
        JobCommand::Modify(args) => modify::run(context, args),
        JobCommand::Complete(args) => action::complete(context, args),
        JobCommand::Delete(args) => delete::run(context, args),
        JobCommand::Watch(args) => watch::run(context, args),
        JobCommand::History(args) => history::run(context, args),
    }
}
