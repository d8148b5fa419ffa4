//! SIGINT, SIGTERM and SIGHUP: noticed between two steps, so that what was begun can be cleaned up.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, io, ptr};

/// Set when somebody asks the command to stop. The second signal ends the process at once.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over the [`ending_signals`] for the rest of the process.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn install() -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in ending_signals()? {
            // In this order: the second signal finds the flag that the first one set.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())?;
            signal_hook::flag::register(signal, asked.clone())?;
        }
        Ok(Self(asked))
    }

    /// Whether to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error as soon as somebody asks to stop.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_set() { Err(Interrupted) } else { Ok(()) }
    }
}

/// The signals that ask a program to end: SIGINT, SIGTERM and, when its terminal or connection goes, SIGHUP; that one
/// only if the program was not started by nohup(1), which means that it should survive this.
///
/// # Errors
/// What the kernel says.
pub fn ending_signals() -> io::Result<Vec<c_int>> {
    let mut signals = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP)? {
        signals.push(SIGHUP);
    }
    Ok(signals)
}

fn is_ignored(signal: c_int) -> io::Result<bool> {
    // SAFETY: `sigaction` consists of integers and a handler's address, for which all zeros is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action nothing is changed, and `action` outlives the call.
    match unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } {
        0 => Ok(action.sa_sigaction == libc::SIG_IGN),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Somebody asked the command to stop.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}
