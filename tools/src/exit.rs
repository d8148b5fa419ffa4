//! How the process ends: exit codes, and errors as people read them.

use crate::output::ClosedOutput;
use imagefmt::ErrorKind;
use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

/// Something in the store is not as it was written.
pub const DAMAGED: u8 = 3;

/// Prints an error with its causes on one line of stderr, then what to do, and gives the exit code for it.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<ClosedOutput>()) {
        // Whoever read our output has enough, as `head` does.
        return ExitCode::SUCCESS;
    }
    eprintln!("smc-image: {}", told(error));
    for advice in error.chain().filter_map(|cause| cause.downcast_ref::<Advised>()) {
        eprintln!("  {}", advice.what_to_do);
    }
    if is_damage(error) {
        ExitCode::from(DAMAGED)
    } else {
        ExitCode::FAILURE
    }
}

/// An error with its causes, on one line: what happened: to what: cause.
pub fn told(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain().filter(|cause| !cause.is::<Advised>()) {
        let part = cause.to_string().replace('\n', " ");
        if parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    parts.join(": ")
}

/// Whether damage in the store is among the causes.
pub fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<imagefmt::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::Damaged)
    })
}

/// Tells, beside an error, what to do about it.
pub trait Advise<T> {
    /// Adds the sentence to the error, if there is one; it is printed on a line of its own.
    fn advise(self, what_to_do: impl Into<String>) -> anyhow::Result<T>;
}

impl<T> Advise<T> for anyhow::Result<T> {
    fn advise(self, what_to_do: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| {
            Advised {
                what_to_do: what_to_do.into(),
                error,
            }
            .into()
        })
    }
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
    use anyhow::Context;

    fn damaged() -> anyhow::Result<()> {
        Err(imagefmt::Error::damaged("cluster 7").into())
    }

    #[test]
    fn damage_shows_through_contexts_and_advice() {
        let error = damaged()
            .context("read")
            .advise("verify it")
            .context("restore")
            .unwrap_err();
        assert!(is_damage(&error));
        assert_eq!(told(&error), "restore: read: cluster 7");
        assert!(!is_damage(&anyhow::anyhow!("no space")));
    }

    #[test]
    fn advice_is_no_part_of_the_message() {
        let error = damaged().advise("verify it").unwrap_err();
        assert_eq!(told(&error), "cluster 7");
        assert!(error.chain().any(|cause| cause.is::<Advised>()));
    }
}
