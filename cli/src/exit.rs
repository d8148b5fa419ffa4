//! How programs end: exit codes, and errors as people read them.

use crate::interrupt::Interrupted;
use crate::output::{self, ClosedOutput};
use clap::Parser;
use std::error::Error as StdError;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// The exit code of a program that failed.
pub const FAILED: u8 = 1;

/// The exit code where the command line, or what it asked for, cannot be right.
pub const WRONG_USE: u8 = 2;

/// The exit code where somebody asked the program to stop before it was done: what a shell gives for SIGINT.
pub const INTERRUPTED: u8 = 130;

/// The exit code where something in a store is not as it was written.
pub const DAMAGED: u8 = 3;

/// What was asked for cannot be right, which the definition of the command line could not tell.
#[derive(Debug)]
pub struct WrongUse(pub String);

impl fmt::Display for WrongUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for WrongUse {}

/// Reads the command line. What cannot be understood, and what only asks for help or the version, is answered here: the
/// process is to end with the exit code.
///
/// # Errors
/// The exit code: 0 after help or the version, 1 where these cannot be written, 2 otherwise.
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|answer| {
        let printed = answer.print().and_then(|()| io::stdout().flush());
        match (answer.exit_code(), printed) {
            (0, Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
                output::complain(format_args!("write to stdout: {error}"));
                ExitCode::from(FAILED)
            }
            (0, _) => ExitCode::SUCCESS,
            _ => ExitCode::from(WRONG_USE),
        }
    })
}

/// Prints an error with its causes on one line of stderr, after the program's name, then what to do.
///
/// Gives the exit code: 0 if all that happened is that nobody reads the output any more, 2 for a [`WrongUse`], 130 for an
/// [`Interrupted`], and otherwise the one that `code_of` knows for one of the causes, or 1.
pub fn report(
    program: &str,
    error: &anyhow::Error,
    code_of: impl Fn(&(dyn StdError + 'static)) -> Option<u8>,
) -> ExitCode {
    if error.chain().any(|cause| cause.is::<ClosedOutput>()) {
        // Whoever read our output has enough, as `head` does.
        return ExitCode::SUCCESS;
    }
    complain_of(program, error);
    let code = error.chain().find_map(|cause| {
        if cause.is::<WrongUse>() {
            Some(WRONG_USE)
        } else if cause.is::<Interrupted>() {
            Some(INTERRUPTED)
        } else {
            code_of(cause)
        }
    });
    ExitCode::from(code.unwrap_or(FAILED))
}

/// Prints what has failed, with its causes on one line of stderr, then what to do on lines of their own.
pub fn complain_of(what: impl fmt::Display, error: &anyhow::Error) {
    output::complain(format_args!("{what}: {}", full_message(error)));
    for advice in advices(error) {
        output::complain(format_args!("  {advice}"));
    }
}

fn advices(error: &anyhow::Error) -> impl Iterator<Item = &str> {
    let advised = error.chain().filter_map(|cause| cause.downcast_ref::<Advised>());
    advised.map(|advised| advised.what_to_do.as_str())
}

/// What to do about an error, if it says that: the outermost sentence.
pub fn advice(error: &anyhow::Error) -> Option<&str> {
    advices(error).next()
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
    ///
    /// # Errors
    /// The error that there was.
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
    fn the_exit_code_is_that_of_a_cause() {
        let wrong = anyhow::Error::from(WrongUse("there is nothing to serve on".to_owned())).context("serve");
        assert_eq!(report("test", &wrong, |_| None), ExitCode::from(WRONG_USE));
        let stopped = anyhow::Error::from(Interrupted).context("restore");
        assert_eq!(report("test", &stopped, |_| None), ExitCode::from(INTERRUPTED));
        let other = anyhow::Error::from(fmt::Error).context("print");
        let damaged = |cause: &(dyn StdError + 'static)| cause.is::<fmt::Error>().then_some(DAMAGED);
        assert_eq!(report("test", &other, damaged), ExitCode::from(DAMAGED));
        assert_eq!(report("test", &other, |_| None), ExitCode::from(FAILED));
        let closed = anyhow::Error::from(ClosedOutput).context("print");
        assert_eq!(report("test", &closed, damaged), ExitCode::SUCCESS);
    }

    #[test]
    fn advice_is_no_part_of_the_message() {
        let failed: anyhow::Result<()> = Err(anyhow::anyhow!("cluster 7"));
        let error = failed.advise("verify it").unwrap_err();
        assert_eq!(full_message(&error), "cluster 7");
        assert!(error.chain().any(|cause| cause.is::<Advised>()));
    }
}
