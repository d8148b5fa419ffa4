//! Signals: each that would end the process without a word is decided on here.
//!
//! SIGTERM, SIGINT, SIGQUIT and, for `smcd sync`, SIGHUP ask for a clean end. All others that a person or a program may
//! send are noted in the log and ignored. SIGPIPE is ignored by Rust's runtime: writing to a closed pipe is an error.
//! Signals are caught, not ignored, so that hooks and other children get the kernel's defaults.

use anyhow::{Context, Result};
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXFSZ,
};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;
use std::fs;
use std::thread;

/// Signals that ask a process to end.
pub const ENDING: [i32; 3] = [SIGTERM, SIGINT, SIGQUIT];

/// The terminal is gone. A service has none; for a command it is a request to end.
pub const HANGUP: i32 = SIGHUP;

/// Signals that mean nothing here. Caught, SIGXFSZ becomes an error of the write that met the limit.
const MEANINGLESS: [i32; 7] = [SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXFSZ];

/// Calls `on` with every signal that is caught from now on, on a thread of its own.
///
/// # Errors
/// When signals cannot be caught, or there is no thread.
pub fn watch(on: impl Fn(i32) + Send + 'static) -> Result<()> {
    let mut caught = [&ENDING[..], &MEANINGLESS].concat();
    // Started by nohup(1), it is to outlive its terminal.
    if !is_ignored(SIGHUP) {
        caught.push(SIGHUP);
    }
    let mut signals = Signals::new(caught).context("catch signals")?;
    let thread = thread::Builder::new().name("signals".to_owned());
    let watching = thread.spawn(move || signals.forever().for_each(on));
    watching.context("start a thread that waits for signals")?;
    Ok(())
}

/// The signal's name, for messages.
pub fn name(signal: i32) -> &'static str {
    signal_name(signal).unwrap_or("a signal")
}

/// Whether this process was started with the signal ignored, as by nohup(1).
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rust_ignores_is_seen() {
        assert!(is_ignored(signal_hook::consts::SIGPIPE));
        assert!(!is_ignored(SIGTERM));
    }
}
