//! smcctl: creates, runs and watches jobs, by what smcd's control API offers and nothing else.

mod cli;
mod client;
mod commands;
mod context;
mod failure;
mod values;
mod view;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run().unwrap_or_else(|error| failure::report(&error))
}
