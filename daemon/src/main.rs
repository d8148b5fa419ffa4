//! smcd: syncs disks into images.

mod activity;
mod checkpoints;
mod cli;
mod disks;
mod progress;
mod report;
mod retention;
mod sync;

use clap::Parser;
use cli::{Cli, Command};
use imagefmt::ErrorKind;
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
        Command::Sync(args) => sync::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smcd: {error:#}");
            ExitCode::from(if is_damage(&error) { DAMAGED } else { FAILED })
        }
    }
}

fn is_damage(error: &anyhow::Error) -> bool {
    let damaged = |cause: &imagefmt::Error| cause.kind() == ErrorKind::Damaged;
    error
        .chain()
        .any(|cause| cause.downcast_ref().is_some_and(damaged))
}
