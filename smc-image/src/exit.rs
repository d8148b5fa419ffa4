//! How smc-image ends: its exit codes.

use imagefmt::ErrorKind;
use std::error::Error as StdError;
use std::process::ExitCode;

pub use cli::exit::{Advise, DAMAGED, INTERRUPTED, advice, advised, full_message};

/// Prints an error with its causes on one line of stderr, then what to do, and gives the exit code for it.
pub fn report(error: &anyhow::Error) -> ExitCode {
    cli::exit::report("smc-image", error, |cause| is_damaged(cause).then_some(DAMAGED))
}

/// Whether damage in the store is among the causes.
pub fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().any(is_damaged)
}

fn is_damaged(cause: &(dyn StdError + 'static)) -> bool {
    cause
        .downcast_ref::<imagefmt::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn damage_shows_through_contexts_and_advice() {
        let damaged: anyhow::Result<()> = Err(imagefmt::Error::damaged("cluster 7").into());
        let error = damaged
            .context("read")
            .advise("verify it")
            .context("restore")
            .unwrap_err();
        assert!(is_damage(&error));
        assert_eq!(full_message(&error), "restore: read: cluster 7");
        assert!(!is_damage(&anyhow::anyhow!("no space")));
    }
}
