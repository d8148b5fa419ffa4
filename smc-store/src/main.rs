//! smc-store: takes images of other machines over the network, and keeps them.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where nothing can be written"
)]

mod answer;
mod args;
mod authority;
mod config;
mod follow;
mod list;
mod metrics;
mod pull;
mod registry;
mod retention;
mod seen;
mod serve;
mod session;
mod sessions;
mod space;

use cli::exit::DAMAGED;
use std::process::ExitCode;

fn main() -> ExitCode {
    let code_of = |cause: &(dyn std::error::Error + 'static)| {
        let error = cause.downcast_ref::<imagefmt::Error>()?;
        (error.kind() == imagefmt::ErrorKind::Damaged).then_some(DAMAGED)
    };
    args::run().unwrap_or_else(|error| cli::exit::report("smc-store", &error, code_of))
}
