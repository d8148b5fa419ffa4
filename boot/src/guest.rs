//! A running QEMU, followed through its console.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::console::{Console, send_lines};
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Machine, QEMU};

/// How often the caller is asked whether it still wants the guest.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Lines that have been read and not been looked at.
const LINES_AHEAD: usize = 1024;
/// What is kept of QEMU's own messages.
const STDERR_BYTES: u64 = 64 << 10;

/// A running QEMU; killed when dropped.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    started: Instant,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

/// What to do after a line of the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Let it run.
    Continue,
    /// Cut its power.
    Kill,
}

/// How a guest is followed.
pub struct Follow<'a> {
    /// From the start of QEMU to its end.
    pub timeout: Duration,
    /// Asked twenty times a second; yes ends the guest.
    pub is_canceled: &'a dyn Fn() -> bool,
    /// Sees each line of the console, and the time since QEMU was started.
    pub on_line: &'a mut dyn FnMut(&str, Duration) -> Next,
}

impl fmt::Debug for Follow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A run that has ended.
#[derive(Debug)]
pub struct Run {
    /// What was written to the first serial line; of a very long one, the end.
    pub console: String,
    /// Whether [`Next::Kill`] ended it.
    pub was_killed: bool,
    /// From starting QEMU to its end.
    pub total: Duration,
    /// How QEMU ended, in words.
    pub end: String,
    tail: String,
}

impl Run {
    /// How QEMU ended and the last lines of the console, for a message.
    pub fn describe(&self) -> String {
        format!("({}); {}", self.end, self.tail)
    }
}

impl Guest {
    /// Starts QEMU. It ends with the thread that calls this, even by a kill.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] when QEMU is not installed, [`ErrorKind::Qemu`] when it cannot be started.
    pub fn start(machine: Machine) -> Result<Self> {
        let mut command = machine.into_command();
        die_with_parent(&mut command);
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::start(QEMU, source))?;
        let (sender, lines) = sync_channel(LINES_AHEAD);
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || send_lines(stdout, &sender));
        }
        let stderr = child
            .stderr
            .take()
            .map(|pipe| thread::spawn(|| read_messages(pipe)));
        Ok(Self {
            child,
            started,
            lines,
            stderr,
        })
    }

    /// Follows the console until QEMU closes it.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when the guest has not powered off in time, with the end of its console;
    /// [`ErrorKind::Canceled`]; [`ErrorKind::Io`] when QEMU cannot be killed or waited for. The guest is killed with each.
    pub fn follow(mut self, follow: &mut Follow<'_>) -> Result<Run> {
        let mut console = Console::default();
        let mut was_killed = false;
        loop {
            match self.lines.recv_timeout(POLL_INTERVAL) {
                Ok(line) => {
                    console.push(&line);
                    let next = (follow.on_line)(&line, self.started.elapsed());
                    if next == Next::Kill && !was_killed {
                        was_killed = true;
                        self.kill()?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.check(follow, &console)?;
        }
        self.end(console, was_killed)
    }

    fn check(&self, follow: &Follow<'_>, console: &Console) -> Result<()> {
        if (follow.is_canceled)() {
            return Err(Error::new(ErrorKind::Canceled, "the guest was canceled"));
        }
        if self.started.elapsed() > follow.timeout {
            let (timeout, tail) = (follow.timeout, console.tail());
            let message = format!("the guest has not powered off after {timeout:?}; {tail}");
            return Err(Error::new(ErrorKind::Timeout, message));
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .map_err(|source| Error::io(format!("kill {QEMU}"), source))
    }

    fn end(mut self, console: Console, was_killed: bool) -> Result<Run> {
        let status = self
            .child
            .wait()
            .map_err(|source| Error::io(format!("wait for {QEMU}"), source))?;
        let stderr = self.stderr.take().and_then(|reader| reader.join().ok());
        let stderr = stderr.unwrap_or_default();
        let end = match (status.signal(), stderr.trim()) {
            (Some(signal), message) => format!("{QEMU} ended by signal {signal}: {message}"),
            (None, "") => format!("{QEMU}: {status}"),
            (None, message) => format!("{QEMU}: {status}: {message}"),
        };
        Ok(Run {
            tail: console.tail(),
            console: console.into_text(),
            was_killed,
            total: self.started.elapsed(),
            end,
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Where it has ended, both fail, and nothing is left to do. What the guest wrote to an overlay goes with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// QEMU's own messages, as far as they are kept; reads on, so that QEMU never waits.
pub(crate) fn read_messages(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // A read error ends the messages early; the exit status still tells success from failure.
    let _ = pipe.by_ref().take(STDERR_BYTES).read_to_end(&mut bytes);
    let _ = io::copy(&mut pipe, &mut io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Makes the kernel end the child when the thread that started it ends.
fn die_with_parent(command: &mut Command) {
    let end_with_us = || prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: the closure runs in the child between fork and exec; it makes one system call, which is
    // async-signal-safe, allocates nothing and takes no lock.
    unsafe { command.pre_exec(end_with_us) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Accelerator;
    use testkit::process::PATIENCE;

    #[test]
    fn a_guest_that_is_canceled_or_takes_too_long_is_killed() {
        let mut machine = Machine::new(Accelerator::Tcg, 16);
        machine.paused();
        let guest = Guest::start(machine).unwrap();
        let process = format!("/proc/{}", guest.child.id());
        let mut follow = Follow {
            timeout: Duration::from_millis(100),
            is_canceled: &|| false,
            on_line: &mut |_, _| Next::Continue,
        };
        let error = guest.follow(&mut follow).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains("wrote nothing"), "{error}");
        assert!(!std::path::Path::new(&process).exists());

        let mut machine = Machine::new(Accelerator::Tcg, 16);
        machine.paused();
        follow.timeout = PATIENCE;
        follow.is_canceled = &|| true;
        let error = Guest::start(machine).unwrap().follow(&mut follow).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Canceled);
    }

    /// A disk whose boot sector writes "hello" to the first serial line and halts.
    fn hello() -> Vec<u8> {
        let mut sector = vec![
            0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x18, 0x7c, 0xfc, // ds:si is the text
            0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5, // until NUL: out 0x3f8
            0xf4, 0xeb, 0xfd, 0x90, // halt
        ];
        sector.extend_from_slice(b"hello\n\0");
        sector.resize(510, 0);
        sector.extend_from_slice(&[0x55, 0xaa]);
        // The BIOS boots from no virtio disk of one sector.
        sector.resize(1 << 20, 0);
        sector
    }

    #[test]
    fn a_line_of_the_console_can_end_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk,with a comma");
        std::fs::write(&file, hello()).unwrap();
        let mut machine = Machine::new(Accelerator::Tcg, 16);
        machine.disk(&crate::Disk {
            source: &file.display().to_string(),
            format: "raw",
            snapshot: true,
            serial: None,
        });
        let run = Guest::start(machine).unwrap().follow(&mut Follow {
            timeout: PATIENCE,
            is_canceled: &|| false,
            on_line: &mut |line, _| {
                if line == "hello" {
                    Next::Kill
                } else {
                    Next::Continue
                }
            },
        });
        let run = run.unwrap();
        assert!(run.was_killed, "{run:?}");
        assert_eq!(run.console, "hello\n");
        assert!(run.end.contains("signal 9"), "{}", run.end);
        assert_eq!(std::fs::read(&file).unwrap(), hello());
    }

    #[test]
    fn a_machine_that_qemu_refuses_says_why() {
        let mut machine = Machine::new(Accelerator::Tcg, 16);
        machine.disk(&crate::Disk {
            source: "/no/such/file",
            format: "raw",
            snapshot: false,
            serial: None,
        });
        let run = Guest::start(machine).unwrap().follow(&mut Follow {
            timeout: PATIENCE,
            is_canceled: &|| false,
            on_line: &mut |_, _| Next::Continue,
        });
        let run = run.unwrap();
        assert!(run.describe().contains("/no/such/file"), "{}", run.describe());
    }
}
