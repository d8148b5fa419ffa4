//! Waiting for other processes. They may be suspended, so whom a command waits for is said.

use cli::interrupt::{Interrupt, Interrupted};
use cli::output;
use imagefmt::{LockWait, lock_holders};
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use blockio::LockedFile;

/// How long a command waits before it says so.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// Waits for a lock of a chain for as long as it takes.
#[derive(Debug)]
pub struct Waiting;

impl LockWait for Waiting {
    fn is_wanted(&self) -> bool {
        true
    }

    fn held_up(&self, by: Option<&str>) {
        match by {
            Some(by) => output::complain(format_args!("smc-image: {by}")),
            None => output::complain("smc-image: the wait is over"),
        }
    }
}

/// Waits for an exclusive lock on a file, until somebody asks to stop.
///
/// # Errors
/// [`Interrupted`]; what the kernel says.
pub fn lock(file: File, interrupt: Option<&Interrupt>) -> anyhow::Result<LockedFile> {
    let begun = Instant::now();
    let holders = file.try_clone()?;
    let mut is_said = false;
    let locked = LockedFile::lock_while(file, || {
        if begun.elapsed() >= TELL_AFTER && !is_said {
            is_said = true;
            let by = lock_holders(&holders).join(", ");
            let by = if by.is_empty() { "another process" } else { &by };
            Waiting.held_up(Some(&format!("waiting until {by} has finished")));
        }
        interrupt.is_none_or(|interrupt| !interrupt.is_set())
    });
    match locked {
        Err((_, error)) if error.kind() == io::ErrorKind::WouldBlock => Err(Interrupted.into()),
        Err((_, error)) => Err(error.into()),
        Ok(locked) => {
            if is_said {
                Waiting.held_up(None);
            }
            Ok(locked)
        }
    }
}
