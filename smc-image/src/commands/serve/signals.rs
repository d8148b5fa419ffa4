//! Signals end the server in order, so that the files of its sockets go with it, or do nothing.

use anyhow::Context as _;
use cli::interrupt::ending_signals;
use nbd::ShutdownHandle;
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGIO, SIGPROF, SIGQUIT, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ,
};
use signal_hook::iterator::Signals;
use std::ffi::c_int;
use std::fs::File;
use std::thread;

/// Signals that mean nothing to the server, and would end it if nobody caught them. Real-time signals come to these.
const MEANINGLESS: &[c_int] = &[
    SIGUSR1,
    SIGUSR2,
    SIGALRM,
    SIGVTALRM,
    SIGPROF,
    SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    // A file of overlays that may not grow: the write fails, which is all that it should do.
    SIGXFSZ,
];

/// The signals of the process, caught from now on.
#[derive(Debug)]
pub struct Caught {
    signals: Signals,
    ending: Vec<c_int>,
}

/// Catches every signal that would end the process: before there is anything to be left behind.
///
/// # Errors
/// Signals that cannot be caught.
pub fn catch() -> anyhow::Result<Caught> {
    let catch = || {
        let mut ending = ending_signals()?;
        ending.extend([SIGQUIT, SIGXCPU]);
        if !has_terminal() {
            // Nobody has hung up. Sent to a service it asks for its settings to be read again, of which there are none.
            ending.retain(|signal| *signal != SIGHUP);
        }
        let others = MEANINGLESS
            .iter()
            .copied()
            .chain([SIGHUP])
            .chain(libc::SIGRTMIN()..=libc::SIGRTMAX());
        let signals = Signals::new(ending.iter().copied().chain(others))?;
        Ok::<_, std::io::Error>(Caught { signals, ending })
    };
    catch().context("catch signals")
}

/// Whether a terminal is there whose end would end the process.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

impl Caught {
    /// Obeys them in a thread of their own.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn obey(mut self, server: ShutdownHandle) -> anyhow::Result<()> {
        let wait = move || {
            for signal in self.signals.forever() {
                if self.ending.contains(&signal) {
                    server.shutdown();
                } else {
                    tracing::info!(signal, "ignored a signal");
                }
            }
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(wait)
            .context("start a thread")?;
        Ok(())
    }
}
