//! Programs under test: run to their end, or running while a test looks at what they do. What cannot be done panics, since
//! the test has failed then.

#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::process::display;
pub use crate::process::wait_for;

/// Exit code of timeout(1) when it had to end the program.
const TIMED_OUT: i32 = 124;
/// Exit code of timeout(1) when there is no such program.
const NOT_FOUND: i32 = 127;

/// What a program that has ended left.
#[derive(Debug, Clone)]
pub struct Run {
    /// Exit code; `None` when killed by a signal.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// Runs a command to its end, without standard input.
///
/// # Panics
/// When it cannot be started: a test whose program is missing has failed.
#[track_caller]
pub fn run(command: &mut Command) -> Run {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => output.into(),
        Err(error) => panic!(
            "`{}`: {error}; `make setup` installs what is missing",
            display(command)
        ),
    }
}

/// As [`run`], for a program that might hang: it is ended after `limit`, and the test has failed.
///
/// # Panics
/// When it is missing, and when it had to be ended.
#[track_caller]
pub fn run_within(limit: Duration, command: &Command) -> Run {
    let mut limited = Command::new("timeout");
    limited.arg(limit.as_secs().to_string());
    limited.arg(command.get_program()).args(command.get_args());
    let run = run(&mut limited);
    let shown = display(command);
    assert_ne!(
        run.code,
        Some(NOT_FOUND),
        "`{shown}` is missing: `make setup` installs it"
    );
    assert_ne!(
        run.code,
        Some(TIMED_OUT),
        "`{shown}` has not ended after {limit:?}: {run:?}"
    );
    run
}

/// Runs a command again and again where nobody can read what it says: its standard output, its standard error or both
/// are on a full disk, or pipes whose reader has gone. `make` makes the command, and what it needs.
///
/// # Panics
/// When it panics, or is killed by a signal.
#[track_caller]
pub fn run_unheard(mut make: impl FnMut() -> Command) {
    for (out, err) in [(true, false), (false, true), (true, true)] {
        for silent in [full, closed] {
            let mut command = make();
            command.stdin(Stdio::null());
            command.stdout(if out { silent() } else { Stdio::piped() });
            command.stderr(if err { silent() } else { Stdio::piped() });
            let shown = display(&command);
            let run = Run::from(command.output().unwrap());
            // 101 is what a panic ends with.
            assert!(
                run.code.is_some_and(|code| code != 101) && !run.stderr.contains("panicked"),
                "`{shown}` (stdout unread: {out}, stderr unread: {err}): {run:?}"
            );
        }
    }
}

/// A disk without space.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer.into()
}

impl Run {
    /// Its output, after an exit code of 0.
    ///
    /// # Panics
    /// When it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self.stdout
    }

    /// What it wrote to standard error, after this exit code.
    ///
    /// # Panics
    /// When it ended otherwise.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self.stderr
    }

    /// Its output as one JSON value.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Its output as JSON values, one a line.
    ///
    /// # Panics
    /// When a line is none.
    #[track_caller]
    pub fn objects(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.stdout.lines().map(parse).collect()
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// Runs another program, which must be there and succeed, and returns its stdout.
///
/// # Panics
/// When it is missing, and when it failed.
#[track_caller]
pub fn tool(name: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(name).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{name}: {error}; `make setup` installs it"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {args:?}: {complaint}");
    output.stdout
}

/// libnbd's shell, by the system's Python, which has its module; another one may come first in PATH.
pub fn nbdsh() -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "nbd"]);
    command
}

/// A process that is ended when dropped.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Starts it without standard input; what it writes can be read from here.
    pub fn start(command: &mut Command) -> Self {
        Self(
            with_default_signals(command)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    /// The next `count` lines of its stdout, or as many as there are to its end.
    pub fn lines(&mut self, count: usize) -> Vec<String> {
        let output = self.0.stdout.as_mut().unwrap();
        std::iter::from_fn(|| next_line(output)).take(count).collect()
    }

    /// Sends a signal and waits for the end; returns the exit code and stderr.
    pub fn signal(mut self, signal: &str) -> (Option<i32>, String) {
        tool("kill", &["-s", signal, &self.0.id().to_string()]);
        let mut status = None;
        wait_for("the end of the process", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        let mut complaints = String::new();
        self.0
            .stderr
            .as_mut()
            .unwrap()
            .read_to_string(&mut complaints)
            .unwrap();
        (status.unwrap().code(), complaints)
    }
}

/// Makes the signals that end a program end it even if the suite runs under nohup(1) or in the background of a shell, which have
/// some of them ignored.
pub fn with_default_signals(command: &mut Command) -> &mut Command {
    let unignore = || {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: signal(2) with SIG_DFL runs no code of ours, touches no memory, and is async-signal-safe.
            if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child between fork and exec; it makes async-signal-safe calls only, allocates nothing and
    // takes no lock.
    unsafe { command.pre_exec(unignore) }
}

/// The next line, read byte by byte: what lies behind it is for the next call. `None` at the end.
fn next_line(output: &mut impl Read) -> Option<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    loop {
        let is_end = output.read(&mut byte).unwrap() == 0;
        if is_end && line.is_empty() {
            return None;
        }
        if is_end || byte == *b"\n" {
            return Some(String::from_utf8(line).unwrap());
        }
        line.push(byte[0]);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_run_has_the_exit_code_and_both_outputs() {
        let failed = run(&mut shell("echo '{\"a\":1}'; echo why >&2; exit 3"));
        assert_eq!(failed.json()["a"], 1);
        assert_eq!(failed.objects().len(), 1);
        assert_eq!(failed.fails(3), "why\n");
        assert_eq!(run(&mut shell("echo yes")).ok(), "yes\n");
        assert_eq!(run(&mut shell("kill -9 $$")).code, None);
    }

    #[test]
    fn a_program_that_failed_hangs_or_is_missing_is_a_failure_of_the_test() {
        assert!(catch_unwind(|| run(&mut shell("exit 1")).ok()).is_err());
        assert!(catch_unwind(|| run(&mut shell("exit 1")).fails(2)).is_err());
        assert!(catch_unwind(|| run(&mut Command::new("/no/such/program"))).is_err());
        let limit = Duration::from_secs(1);
        assert!(catch_unwind(|| run_within(limit, &Command::new("/no/such/program"))).is_err());
        assert!(catch_unwind(|| run_within(limit, &shell("exec sleep 60"))).is_err());
        let limit = Duration::from_secs(60);
        assert_eq!(run_within(limit, &shell("echo yes")).ok(), "yes\n");
    }
}
