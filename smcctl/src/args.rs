//! The command line: what can be asked, and who answers.

use crate::client::Client;
use crate::commands::job::{self, JobCommand};
use crate::commands::target::{self, TargetCommand};
use crate::commands::{disks, estimate, exports, precheck, status, tracker};
use crate::context::Context;
use clap::{ColorChoice, CommandFactory, Parser, Subcommand};
use cli::exit;
use cli::pages::{self, CompletionsArgs, ManArgs};
use cli::paint::Paint;
use std::path::PathBuf;
use std::process::ExitCode;

/// The heading of the options that every command has.
const GLOBAL: &str = "Global options";

const AFTER_HELP: &str = "\
Times are written 90s, 30m, 6h, 7d; sizes 64KiB, 50MiB, 1.5GiB. smcd checks
the ranges, and its error messages name them.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.";

/// Creates, runs and watches the jobs of smcd, which creates images of this server's disks while the server runs.
#[derive(Debug, Parser)]
#[command(name = "smcctl", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// Socket that smcd listens on
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "PATH", env = "SMC_SOCKET")]
    #[arg(default_value = api::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Print smcd's answers for programs, one JSON object per line
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
    /// When to use colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    color: ColorChoice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::Args),
    Disks(disks::Args),
    Precheck(precheck::Args),
    Estimate(estimate::Args),
    Exports(exports::Args),
    Tracker(tracker::Args),
    #[command(subcommand)]
    Target(TargetCommand),
    /// Create, run and watch jobs
    #[command(subcommand)]
    Job(Box<JobCommand>),
    Completions(CompletionsArgs),
    #[command(hide = true)]
    Man(ManArgs),
}

/// Reads the command line and does what it asks.
///
/// # Errors
/// That of the command.
pub fn run() -> anyhow::Result<ExitCode> {
    let cli: Cli = match exit::parse() {
        Ok(cli) => cli,
        Err(code) => return Ok(code),
    };
    let context = &mut Context {
        client: Client::new(cli.socket)?,
        json: cli.json,
        paint: Paint::for_stdout(cli.color),
    };
    match &cli.command {
        Command::Status(args) => status::run(context, args),
        Command::Disks(args) => disks::run(context, args),
        Command::Precheck(args) => precheck::run(context, args),
        Command::Estimate(args) => estimate::run(context, args),
        Command::Exports(args) => exports::run(context, args),
        Command::Tracker(args) => tracker::run(context, args),
        Command::Target(command) => target::run(context, command),
        Command::Job(command) => job::run(context, command),
        Command::Completions(args) => pages::completions(Cli::command(), args).map(|()| ExitCode::SUCCESS),
        Command::Man(args) => pages::man(Cli::command(), args).map(|()| ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
