//! smcctl: creates, runs and watches jobs, by what smcd's control API offers and nothing else.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where nothing can be written"
)]

mod args;
mod client;
mod commands;
mod context;
mod values;
mod view;

use api::{ErrorBody, ErrorKind};
use std::error::Error as StdError;
use std::process::ExitCode;

fn main() -> ExitCode {
    args::run().unwrap_or_else(|error| cli::exit::report("smcctl", &error, code_of))
}

/// Wrong use, where it was smcd that found it.
fn code_of(cause: &(dyn StdError + 'static)) -> Option<u8> {
    let refused = cause.downcast_ref::<ErrorBody>()?;
    (refused.error == ErrorKind::Invalid).then_some(cli::exit::WRONG_USE)
}
