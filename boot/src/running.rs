//! A [`Pc`] that runs: its console, both ways, and pictures of its screen.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind as IoErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};
use serde_json::json;

use crate::agent::Agent;
use crate::error::{Error, ErrorKind, Result};
use crate::firmware::memory_file;
use crate::guest::read_messages;
use crate::machine::QEMU;
use crate::pc::{Pc, Prepared, SCREEN_FILE, Theirs};
use crate::qmp::Qmp;

/// Read from the console at a time.
const READ_BYTES: usize = 16 << 10;
/// A screen takes some 10 KB; what a hostile guest draws may take more.
const SCREEN_BYTES_MAX: u64 = 8 << 20;
/// How long the guest may leave what was typed unread.
const WRITE_TIMEOUT: Duration = Duration::from_millis(200);

/// A running QEMU; killed when dropped, and when the thread that started it ends, even by a kill.
pub struct Running {
    child: Child,
    started: Instant,
    console: UnixStream,
    buffer: Vec<u8>,
    control: Qmp,
    agent: Option<Agent>,
    screen: File,
    messages: Option<JoinHandle<String>>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("child", &self.child)
            .finish_non_exhaustive()
    }
}

/// What the console has said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// This.
    Bytes(&'a [u8]),
    /// Nothing in that time.
    Nothing,
    /// QEMU has closed it: it is over.
    End,
}

impl Running {
    /// Starts the machine.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] when QEMU is not installed, [`ErrorKind::Qemu`] with its reason when it cannot make the
    /// machine, [`ErrorKind::Io`].
    pub fn start(pc: Pc) -> Result<Self> {
        let (console, their_console) = pair()?;
        let (control, their_control) = pair()?;
        let (agent, their_agent) = pair()?;
        let screen = memory_file("smc-screen")?;
        let mut prepared = pc.prepare(Theirs {
            console: their_console.into(),
            control: their_control.into(),
            screen: writable(&screen)?,
            agent: their_agent.into(),
        })?;
        hand_over(&mut prepared);
        let started = Instant::now();
        let mut child = spawn(&mut prepared.command)?;
        // From here on only QEMU has its ends: they close when it ends.
        drop(prepared);
        let messages = child.stderr.take();
        let messages = messages.map(|pipe| thread::spawn(|| read_messages(pipe)));
        match Qmp::connect(control) {
            Ok(control) => Ok(Self {
                child,
                started,
                console,
                buffer: vec![0; READ_BYTES],
                control,
                agent: Some(Agent::new(agent)),
                screen: screen.into(),
                messages,
            }),
            Err(error) => Err(not_started(child, messages, error)),
        }
    }

    /// QEMU's version, as `7.2.0`.
    pub fn qemu_version(&self) -> &str {
        self.control.version()
    }

    /// The line to the guest agent; once.
    pub fn take_agent(&mut self) -> Option<Agent> {
        self.agent.take()
    }

    /// For how long it has been running.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for the console, at most for `timeout`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn read(&mut self, timeout: Duration) -> Result<Said<'_>> {
        let failed = |source| Error::io("read the guest's console", source);
        self.console.set_read_timeout(Some(timeout)).map_err(failed)?;
        match self.console.read(&mut self.buffer) {
            Ok(0) => Ok(Said::End),
            Ok(length) => Ok(Said::Bytes(&self.buffer[..length])),
            Err(error) => match error.kind() {
                IoErrorKind::WouldBlock | IoErrorKind::TimedOut | IoErrorKind::Interrupted => {
                    Ok(Said::Nothing)
                }
                IoErrorKind::ConnectionReset => Ok(Said::End),
                _ => Err(failed(error)),
            },
        }
    }

    /// The console, to wait for it together with other descriptors.
    pub fn console(&self) -> BorrowedFd<'_> {
        self.console.as_fd()
    }

    /// Types on the console. What a guest that reads nothing has no room for is lost, as on a serial line.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], but not because the guest has ended.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |source| Error::io("write to the guest's console", source);
        self.console
            .set_write_timeout(Some(WRITE_TIMEOUT))
            .map_err(failed)?;
        match self.console.write_all(bytes) {
            Err(error)
                if !matches!(
                    error.kind(),
                    IoErrorKind::WouldBlock | IoErrorKind::BrokenPipe | IoErrorKind::ConnectionReset
                ) =>
            {
                Err(failed(error))
            }
            _ => Ok(()),
        }
    }

    /// A picture of the screen as PNG.
    ///
    /// # Errors
    /// [`ErrorKind::Qemu`] where QEMU has ended or cannot make one: it can from version 7.1 on.
    pub fn screenshot(&mut self) -> Result<Vec<u8>> {
        let failed = |source| Error::io("read the picture of the screen", source);
        self.screen.set_len(0).map_err(failed)?;
        let arguments = json!({ "filename": SCREEN_FILE, "format": "png" });
        self.control.ask("screendump", &arguments)?;
        let length = self.screen.metadata().map_err(failed)?.len();
        if length > SCREEN_BYTES_MAX {
            let what = format!("the picture of the screen is too large: {length} bytes");
            return Err(Error::new(ErrorKind::Qemu, what));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.screen.read_exact_at(&mut bytes, 0).map_err(failed)?;
        // Another one would begin where this one ended, behind a hole.
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        bytes.drain(..zeros);
        Ok(bytes)
    }

    /// Ends the machine as if its power were cut, and says how QEMU ended: in words, where that is worth a word.
    pub fn end(mut self) -> Option<String> {
        let status = match self.child.try_wait() {
            Ok(None) => {
                self.stop();
                None
            }
            Ok(status) => status,
            Err(_) => None,
        };
        let messages = self.messages.take().and_then(|reader| reader.join().ok());
        let status = status.filter(|status| !status.success())?;
        let how = match status.signal() {
            Some(signal) => format!("{QEMU} ended by signal {signal}"),
            None => format!("{QEMU}: {status}"),
        };
        Some(match messages.unwrap_or_default().trim() {
            "" => how,
            message => format!("{how}: {message}"),
        })
    }

    fn stop(&mut self) {
        // Where it has just ended, both fail, and nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

fn pair() -> Result<(UnixStream, UnixStream)> {
    UnixStream::pair().map_err(|source| Error::io("make a pair of sockets", source))
}

/// The same file, opened for writing only: QEMU uses a descriptor for nothing else than it is open for.
fn writable(file: &OwnedFd) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut options = File::options();
    let opened = options.write(true).custom_flags(nix::libc::O_CLOEXEC).open(path);
    opened
        .map(OwnedFd::from)
        .map_err(|source| Error::io("open a file in memory", source))
}

fn spawn(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .current_dir("/")
        // A key that interrupts us is not for QEMU: we end it.
        .process_group(0)
        .spawn()
        .map_err(|source| Error::start(QEMU, source))
}

/// Lets QEMU inherit its descriptors, and end when the thread that starts it ends.
fn hand_over(prepared: &mut Prepared) {
    let numbers: Vec<RawFd> = prepared.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let parent = getpid();
    let in_child = move || become_qemu(&numbers, parent);
    // SAFETY: the closure runs in the child between fork and exec; it makes system calls that are async-signal-safe,
    // allocates nothing and takes no lock.
    unsafe { prepared.command.pre_exec(in_child) };
}

fn become_qemu(numbers: &[RawFd], parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        // Whoever wanted it has ended before the call above.
        return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
    }
    // A core of QEMU would hold what is in the guest's memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    for &number in numbers {
        // SAFETY: the parent holds these open until the child has been started.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    Ok(())
}

/// Why QEMU has made no machine.
fn not_started(mut child: Child, messages: Option<JoinHandle<String>>, error: Error) -> Error {
    let _ = child.kill();
    let _ = child.wait();
    let messages = messages.and_then(|reader| reader.join().ok()).unwrap_or_default();
    match messages.trim() {
        "" => error,
        said => Error::new(ErrorKind::Qemu, format!("QEMU cannot make the machine: {said}")),
    }
}
