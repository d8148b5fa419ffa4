//! Programs under test: run to their end, or running while a test looks at what they do. What cannot be done panics, since
//! the test has failed then.

#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::process::wait_until;

const TIMEOUT: Duration = Duration::from_secs(60);

/// What a run of the tool left.
#[derive(Debug)]
pub struct Run {
    /// Exit code; `None` when killed by a signal.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// Runs a command without standard input.
pub fn run(command: &mut Command) -> Run {
    let Output {
        status,
        stdout,
        stderr,
    } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run {
        code: status.code(),
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

impl Run {
    /// Its output, after an exit code of 0.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self.stdout
    }

    /// What it said on stderr, after this exit code.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self.stderr
    }

    /// Its output as objects, one a line.
    #[track_caller]
    pub fn objects(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Runs another program, which must be there and succeed, and returns its stdout.
pub fn tool(name: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(name).args(args).output();
    let output =
        output.unwrap_or_else(|error| panic!("{name} is needed (scripts/setup.sh installs it): {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {args:?}: {complaint}");
    output.stdout
}

/// Waits until `done`, within a time after which the test has failed.
pub fn wait_for(what: &str, done: impl FnMut() -> bool) {
    assert!(wait_until(TIMEOUT, done).is_ok(), "waited in vain: {what}");
}

/// A process that is ended when dropped.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Starts it without standard input; what it writes can be read from here.
    pub fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    /// The first `count` lines of its stdout.
    pub fn lines(&mut self, count: usize) -> Vec<String> {
        let reader = BufReader::new(self.0.stdout.as_mut().unwrap());
        reader.lines().take(count).map(Result::unwrap).collect()
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

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
