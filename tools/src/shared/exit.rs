//! Errors as people read them.

use crate::output::{self, ClosedOutput};
use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

/// Prints an error with its causes on one line of stderr, after the program's name, then what to do. Gives the exit
/// code: 1, or 0 if all that happened is that nobody reads the output any more.
pub fn report(program: &str, error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<ClosedOutput>()) {
        // Whoever read our output has enough, as `head` does.
        return ExitCode::SUCCESS;
    }
    output::complain(format_args!("{program}: {}", full_message(error)));
    for advice in error.chain().filter_map(|cause| cause.downcast_ref::<Advised>()) {
        output::complain(format_args!("  {}", advice.what_to_do));
    }
    ExitCode::FAILURE
}

/// An error with its causes, on one line: what happened: to what: cause.
pub fn full_message(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain().filter(|cause| !cause.is::<Advised>()) {
        let part = cause.to_string().replace('\n', " ");
        if parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    parts.join(": ")
}

/// Tells, beside an error, what to do about it.
pub trait Advise<T> {
    /// Adds the sentence to the error, if there is one; it is printed on a line of its own.
    fn advise(self, what_to_do: impl Into<String>) -> anyhow::Result<T>;
}

impl<T> Advise<T> for anyhow::Result<T> {
    fn advise(self, what_to_do: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| advised(error, what_to_do))
    }
}

/// The error, with the sentence that tells what to do about it.
pub fn advised(error: anyhow::Error, what_to_do: impl Into<String>) -> anyhow::Error {
    let what_to_do = what_to_do.into();
    Advised { what_to_do, error }.into()
}

/// An error with what to do about it; shows nothing of the error itself, which is its source.
#[derive(Debug)]
struct Advised {
    what_to_do: String,
    error: anyhow::Error,
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what_to_do)
    }
}

impl StdError for Advised {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_no_part_of_the_message() {
        let failed: anyhow::Result<()> = Err(anyhow::anyhow!("cluster 7"));
        let error = failed.advise("verify it").unwrap_err();
        assert_eq!(full_message(&error), "cluster 7");
        assert!(error.chain().any(|cause| cause.is::<Advised>()));
    }
}
