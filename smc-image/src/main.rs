//! smc-image: lists, verifies, serves, mounts and restores images.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where nothing can be written"
)]

mod activation;
mod args;
mod behind;
mod catalog;
mod commands;
mod confine;
mod context;
mod exit;
mod guest;
mod guest_path;
mod helper;
mod inspected;
mod mount;
mod overlay;
mod pull;
mod selection;
mod stdio;
mod waiting;

use std::process::ExitCode;

fn main() -> ExitCode {
    args::run().unwrap_or_else(|error| exit::report(&error))
}
