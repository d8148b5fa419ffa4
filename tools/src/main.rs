//! smc-image: lists, verifies, serves, mounts and restores images.

mod activation;
mod catalog;
mod cli;
mod commands;
mod confine;
mod context;
mod exit;
mod hashing;
mod mount;
mod restore;
mod selection;
mod stdio;

use std::process::ExitCode;
use tools::{interrupt, output};

fn main() -> ExitCode {
    cli::run().unwrap_or_else(|error| exit::report(&error))
}
