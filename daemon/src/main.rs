//! smcd: syncs disks into images.

mod cli;
mod engine;
mod oneshot;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

/// What a command found out for the shell: 1 failed, 3 damage found; clap itself exits with 2.
const FAILED: u8 = 1;
const DAMAGED: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        // A sync outlives whoever read its log.
        .log_internal_errors(false)
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("SMC_LOG"))
        .with_writer(std::io::stderr)
        .init();
    let done = match &cli.command {
        Command::Sync(args) => oneshot::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smcd: {error:#}");
            ExitCode::from(if engine::is_damage(&error) {
                DAMAGED
            } else {
                FAILED
            })
        }
    }
}
