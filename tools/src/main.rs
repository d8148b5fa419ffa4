//! smc-image: lists, verifies, serves, mounts and restores images.

mod catalog;
mod cli;
mod commands;
mod context;
mod exit;
mod hashing;
mod interrupt;
mod mount;
mod output;
mod restore;
mod selection;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run().unwrap_or_else(|error| exit::report(&error))
}
