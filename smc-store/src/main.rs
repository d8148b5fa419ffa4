//! smc-store: takes images of other machines over the network, and keeps them.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where nothing can be written"
)]

mod args;
mod authority;
mod config;
mod list;
mod registry;
mod retention;
mod serve;
mod session;
mod sessions;
mod space;

use std::process::ExitCode;

fn main() -> ExitCode {
    args::run().unwrap_or_else(|error| cli::exit::report("smc-store", &error, |_| None))
}
