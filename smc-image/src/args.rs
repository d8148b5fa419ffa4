//! The command line: what can be asked, and who answers.

use crate::commands::{
    boot, cp, diff, digest, export, gc, info, inspect, ls, ls_files, map, mount, pin, pull, restore, rm,
    serve, tls_init, umount, verdict, verify,
};
use crate::context::Context;
use crate::helper;
use clap::{CommandFactory, Parser, Subcommand};
use cli::exit;
use cli::pages::{self, CompletionsArgs, ManArgs};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Where the store is when nobody says otherwise.
const STORE_DEFAULT: &str = "/var/lib/smc/store";

const AFTER_HELP: &str = "\
Images are written JOB/NUMBER or JOB/latest, and JOB/NUMBER:DISK for one disk of an image; \
:DISK may be left out if the image has one disk.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 damage found, 130 interrupted.";

/// Lists, verifies, serves, mounts and restores the images of servers that smc made.
#[derive(Debug, Parser)]
#[command(name = "smc-image", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    /// Directory of the store
    #[arg(long, global = true, value_name = "DIR", env = "SMC_STORE", default_value = STORE_DEFAULT)]
    store: PathBuf,
    /// Print one JSON object per line, for programs
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(ls::Args),
    Info(info::Args),
    Verify(verify::Args),
    Digest(digest::Args),
    Diff(diff::Args),
    Map(map::Args),
    Serve(serve::Args),
    Export(export::Args),
    Restore(restore::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    LsFiles(ls_files::Args),
    Cp(cp::Args),
    Inspect(inspect::Args),
    Boot(boot::Args),
    Verdict(verdict::Args),
    Pull(pull::Args),
    Rm(rm::Args),
    Pin(pin::Args),
    Unpin(pin::UnpinArgs),
    Gc(gc::Args),
    TlsInit(tls_init::Args),
    Completions(CompletionsArgs),
    #[command(hide = true)]
    HelperGuest(helper::init::Args),
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
    log_to_stderr();
    let context = &Context {
        store: cli.store,
        json: cli.json,
    };
    match &cli.command {
        Command::Ls(args) => ls::run(context, args),
        Command::Info(args) => info::run(context, args),
        Command::Verify(args) => verify::run(context, args),
        Command::Digest(args) => digest::run(context, args),
        Command::Diff(args) => diff::run(context, args),
        Command::Map(args) => map::run(context, args),
        Command::Serve(args) => serve::run(context, args),
        Command::Export(args) => export::run(context, args),
        Command::Restore(args) => restore::run(context, args),
        Command::Mount(args) => mount::run(context, args),
        Command::Umount(args) => umount::run(context, args),
        Command::LsFiles(args) => ls_files::run(context, args),
        Command::Cp(args) => cp::run(context, args),
        Command::Inspect(args) => inspect::run(context, args),
        Command::Boot(args) => boot::run(context, args),
        Command::Verdict(args) => verdict::run(context, args),
        Command::Pull(args) => pull::run(context, args),
        Command::Rm(args) => rm::run(context, args),
        Command::Pin(args) => pin::run(context, args),
        Command::Unpin(args) => pin::run_unpin(context, args),
        Command::Gc(args) => gc::run(context, args),
        Command::TlsInit(args) => tls_init::run(context, args),
        Command::HelperGuest(_) => helper::init::run(),
        Command::Completions(args) => pages::completions(Cli::command(), args).map(|()| ExitCode::SUCCESS),
        Command::Man(args) => pages::man(Cli::command(), args).map(|()| ExitCode::SUCCESS),
    }
}

/// Warnings go to stderr; `SMC_LOG=debug` shows more.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("SMC_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // A server outlives whoever read its log.
        .log_internal_errors(false)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
