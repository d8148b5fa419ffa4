//! The terminal as the guest's: each key goes to it as it is typed, and nothing is echoed here.

use anyhow::Context;
use nix::sys::termios::{InputFlags, LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;

/// Read from the keyboard at a time.
const READ_BYTES: usize = 4096;

/// A terminal whose settings were changed; they are restored when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    before: Option<Termios>,
}

impl Terminal {
    /// Lets keys through at once, except those that interrupt: Ctrl-C ends the boot, as it ends every command. What is no
    /// terminal is left alone.
    ///
    /// # Errors
    /// When the terminal does not let its settings be read or changed.
    pub fn take_over() -> anyhow::Result<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self { before: None });
        }
        let before = tcgetattr(&stdin).context("read the terminal's settings")?;
        let mut changed = before.clone();
        changed.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        changed.input_flags.remove(InputFlags::ICRNL | InputFlags::IXON);
        tcsetattr(&stdin, SetArg::TCSANOW, &changed).context("change the terminal's settings")?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // A terminal that has vanished has no settings any more.
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

/// Types what comes on standard input on the guest's console, from a thread that ends with the process.
///
/// # Errors
/// When the console cannot be used twice, or no thread can be started.
pub fn type_to(console: BorrowedFd<'_>) -> anyhow::Result<()> {
    let console = console.as_fd().try_clone_to_owned().context("use the console")?;
    let mut console = UnixStream::from(console);
    let copy = move || {
        let mut buffer = [0; READ_BYTES];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            if console.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("keys".to_owned())
        .spawn(copy)
        .context("start a thread")?;
    Ok(())
}
