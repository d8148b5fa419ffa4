//! Child processes that end with us, waiting with a deadline, and Ctrl-C.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::error::{Error, ErrorKind, IoContext, Result};

const LONGEST_NAP: Duration = Duration::from_millis(20);
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(5);
const LOG_TAIL_LINES: usize = 20;

fn interrupt_flag() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default)
}

/// From now on SIGINT, SIGTERM and SIGHUP make whatever waits here return [`ErrorKind::Interrupted`], so that
/// guards are dropped on the way out. A second one ends the process at once.
///
/// # Errors
/// [`ErrorKind::Io`] when the kernel refuses a handler.
pub fn catch_interrupts() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal finds the flag unset, passes by, and sets it.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(interrupt_flag()))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(interrupt_flag())))
            .context(|| format!("catch signal {signal}"))?;
    }
    Ok(())
}

/// Whether a signal has arrived since [`catch_interrupts`].
///
/// # Errors
/// [`ErrorKind::Interrupted`] once one has.
pub fn check_interrupt() -> Result<()> {
    if interrupt_flag().load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
    }
    Ok(())
}

/// Asks `done` again and again, at most 20 ms apart, until it says yes. Interrupts do not end it: it also serves
/// cleaning up.
///
/// # Errors
/// [`ErrorKind::Timeout`] after `timeout`.
pub fn wait_until(timeout: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let mut nap = Duration::from_micros(200);
    while !done() {
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("nothing happened for {timeout:?}"),
            ));
        }
        thread::sleep(nap);
        nap = (nap * 2).min(LONGEST_NAP);
    }
    Ok(())
}

/// How long a test waits for anything: longer than it may take on a machine that is busy with other work.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `done` says yes.
///
/// # Panics
/// When it does not within [`PATIENCE`]: the test has failed, and `what` is what it waited for.
#[track_caller]
pub fn wait_for(what: &str, done: impl FnMut() -> bool) {
    if wait_until(PATIENCE, done).is_err() {
        panic!("waited for {PATIENCE:?} in vain: {what}");
    }
}

static OBSERVER: OnceLock<fn(&Command)> = OnceLock::new();

/// From now on `observer` sees every command before it is started. The first observer stays.
pub fn observe(observer: fn(&Command)) {
    let _ = OBSERVER.set(observer);
}

/// Shows `command` to the observer, as [`spawn`] does: for processes that other code starts.
pub fn announce(command: &Command) {
    if let Some(observer) = OBSERVER.get() {
        observer(command);
    }
}

/// The command line as a person would type it.
pub fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+%@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Makes the kernel end the child when the thread that started it ends, even by a kill.
fn die_with_parent(command: &mut Command) {
    let end_with_us = || {
        // SAFETY: prctl(PR_SET_PDEATHSIG) takes a plain integer, touches no memory of ours, and is
        // async-signal-safe: it is one system call.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs in the child between fork and exec; it makes one async-signal-safe call,
    // allocates nothing and takes no lock.
    unsafe { command.pre_exec(end_with_us) };
}

/// Starts `command` without standard input; it ends when the thread that started it ends.
///
/// # Errors
/// [`ErrorKind::Command`] when it cannot be started.
pub fn spawn(command: &mut Command) -> Result<Child> {
    announce(command);
    die_with_parent(command);
    command.stdin(Stdio::null()).spawn().map_err(|source| {
        let program = command.get_program().to_string_lossy();
        let hint = if source.kind() == std::io::ErrorKind::NotFound {
            ": is it installed? (make setup)"
        } else {
            ""
        };
        Error::io(format!("start {program}{hint}"), source).with_kind(ErrorKind::Command)
    })
}

fn read_in_thread(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A read error ends the text early; the exit status still tells success from failure.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// Waits for `child`; kills it when we are interrupted.
fn wait(child: &mut Child, name: &str) -> Result<ExitStatus> {
    let mut nap = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait().context(|| format!("wait for {name}"))? {
            return Ok(status);
        }
        if let Err(interrupted) = check_interrupt() {
            terminate(child);
            return Err(interrupted);
        }
        thread::sleep(nap);
        nap = (nap * 2).min(LONGEST_NAP);
    }
}

fn terminate(child: &mut Child) {
    let Ok(pid) = i32::try_from(child.id()) else {
        return;
    };
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    if wait_until(TERMINATE_TIMEOUT, || !matches!(child.try_wait(), Ok(None))).is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// [`ErrorKind::Command`], with what it wrote, unless it exits with 0.
pub fn run(command: &mut Command) -> Result<String> {
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let stdout = child.stdout.take().map(read_in_thread);
    let stderr = child.stderr.take().map(read_in_thread);
    let text = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let status = wait(&mut child, &display(command))?;
    if status.success() {
        return Ok(text(stdout));
    }
    check_interrupt()?;
    let said = tail(&format!("{}{}", text(stdout), text(stderr)), LOG_TAIL_LINES);
    Err(Error::new(
        ErrorKind::Command,
        format!("`{}` failed ({status}):\n{said}", display(command)),
    ))
}

/// The memory that a process has in use now (VmRSS), in bytes.
///
/// # Errors
/// [`ErrorKind::Io`] when there is no such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = rss.and_then(|rss| rss.split_whitespace().next()?.parse::<u64>().ok());
    let no_rss = || {
        Error::new(
            ErrorKind::Io,
            format!("{path} has no VmRSS: the process has ended"),
        )
    };
    Ok(kib.ok_or_else(no_rss)? << 10)
}

/// The last `lines` lines of `text`.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A server in the background; ended when dropped: asked first, killed after five seconds.
#[derive(Debug)]
pub struct Server {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts `command` with its output going to the file `log`.
    ///
    /// The server also ends when the thread that calls this ends.
    ///
    /// # Errors
    /// [`ErrorKind::Command`] when it cannot be started, [`ErrorKind::Io`] when the log cannot be written.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).context(|| format!("create {}", log.display()))?;
        let copy = file
            .try_clone()
            .context(|| format!("open {} twice", log.display()))?;
        let child = spawn(command.stdout(file).stderr(copy))?;
        Ok(Self {
            child,
            name: display(command),
            log: log.to_path_buf(),
        })
    }

    /// Starts `command` and waits until it accepts connections on the Unix socket `socket`.
    ///
    /// # Errors
    /// [`ErrorKind::Command`] when it ends before that, [`ErrorKind::Timeout`] when it does not listen within
    /// [`PATIENCE`].
    pub fn start_on_socket(command: &mut Command, socket: &Path, log: &Path) -> Result<Self> {
        let mut server = Self::start(command, log)?;
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).is_err() {
            check_interrupt()?;
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(server.error(ErrorKind::Command, &format!("ended early ({status})")));
            }
            if Instant::now() >= deadline {
                let said = format!("does not listen on {} after {PATIENCE:?}", socket.display());
                return Err(server.error(ErrorKind::Timeout, &said));
            }
            thread::sleep(LONGEST_NAP);
        }
        Ok(server)
    }

    /// What the server has written so far.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Asks the server to end (SIGTERM), and waits until it has. Returns its exit code; `None` if a signal ended it.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when it has not ended within [`PATIENCE`].
    pub fn stop(mut self) -> Result<Option<i32>> {
        let pid = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let mut ended = None;
        let waited = wait_until(PATIENCE, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
        });
        waited.map_err(|_| self.error(ErrorKind::Timeout, "does not end"))?;
        Ok(ended.and_then(|status| status.code()))
    }

    fn error(&self, kind: ErrorKind, what: &str) -> Error {
        Error::new(
            kind,
            format!("`{}` {what}:\n{}", self.name, tail(&self.log(), LOG_TAIL_LINES)),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}
