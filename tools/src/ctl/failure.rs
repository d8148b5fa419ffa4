//! How smcctl ends when it did not do what it was asked for.

use api::{ErrorBody, ErrorKind};
use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

/// The command line, or what it asked for, cannot be right.
const WRONG_USE: u8 = 2;

/// What was asked for cannot be right, as far as smcctl can tell without asking smcd.
#[derive(Debug)]
pub struct WrongUse(pub String);

impl fmt::Display for WrongUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for WrongUse {}

/// Prints an error with what to do about it, and gives the exit code: 2 for wrong use, whoever found it, otherwise 1.
pub fn report(error: &anyhow::Error) -> ExitCode {
    match tools::exit::report("smcctl", error) {
        ExitCode::FAILURE if is_wrong_use(error) => ExitCode::from(WRONG_USE),
        code => code,
    }
}

fn is_wrong_use(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let refused = cause.downcast_ref::<ErrorBody>();
        cause.is::<WrongUse>() || refused.is_some_and(|body| body.error == ErrorKind::Invalid)
    })
}
