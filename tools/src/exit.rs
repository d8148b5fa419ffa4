//! How smc-image ends: its exit codes.

use imagefmt::ErrorKind;
use std::process::ExitCode;
pub use tools::exit::{Advise, full_message};

/// Something in the store is not as it was written.
pub const DAMAGED: u8 = 3;

/// Prints an error with its causes on one line of stderr, then what to do, and gives the exit code for it.
pub fn report(error: &anyhow::Error) -> ExitCode {
    match tools::exit::report("smc-image", error) {
        ExitCode::FAILURE if is_damage(error) => ExitCode::from(DAMAGED),
        code => code,
    }
}

/// Whether damage in the store is among the causes.
pub fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<imagefmt::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::Damaged)
    })
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
