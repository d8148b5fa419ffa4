//! Running a judge: its command line and exit code are printed, and the exit code is what was expected.

use serde_json::Value;
use std::ffi::OsStr;
use std::process::Command;
use testkit::process::display;
use vm_tests::kernel::cache_dir;

/// Longest run of one judge, in seconds: a server that stalls fails the test and does not stop it.
const LONGEST_SECONDS: &str = "120";

/// What a judge said on its way out.
#[derive(Debug)]
pub struct Verdict {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A judge of this machine's release.
pub fn judge<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Verdict {
    judge_ends(0, program, args)
}

/// The same, which must end with this exit code.
pub fn judge_ends<S: AsRef<OsStr>>(code: i32, program: &str, args: &[S]) -> Verdict {
    let mut shown = Command::new(program);
    shown.args(args);
    ends(
        code,
        &display(&shown),
        Command::new("timeout")
            .arg(LONGEST_SECONDS)
            .arg(program)
            .args(args),
    )
}

/// A judge of the newer release that `scripts/setup.sh` unpacked.
pub fn newer<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Verdict {
    let mut shown = Command::new(program);
    shown.args(args);
    let mut command = Command::new("timeout");
    command.arg(LONGEST_SECONDS).arg(runner()).arg(program).args(args);
    ends(0, &format!("newer: {}", display(&shown)), &mut command)
}

/// Runs a program of the newer release: its first argument.
pub fn runner() -> std::path::PathBuf {
    let runner = cache_dir().join("newer/run");
    assert!(
        runner.is_file(),
        "no newer clients in {}: run 'make setup'",
        runner.display()
    );
    runner
}

/// Runs `command`, which is shown as `shown`.
pub fn ends(code: i32, shown: &str, command: &mut Command) -> Verdict {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("start {shown}: {error}"));
    let verdict = Verdict {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    let ended = output.status.code().unwrap_or(-1);
    println!("exit {ended}: {shown}");
    assert_eq!(ended, code, "{shown}\n{}{}", verdict.stdout, verdict.stderr);
    verdict
}

/// `nbdsh` of this machine's release. It is run by the system's Python, which has its module; another Python may
/// come first in PATH.
pub fn nbdsh(args: &[&str]) -> Verdict {
    let mut command = Command::new("timeout");
    command
        .args([LONGEST_SECONDS, "/usr/bin/python3", "-m", "nbd"])
        .args(args);
    ends(0, &nbdsh_shown(args), &mut command)
}

/// `nbdsh` of the newer release.
pub fn newer_nbdsh(args: &[&str]) -> Verdict {
    let mut command = Command::new("timeout");
    command.arg(LONGEST_SECONDS).arg(runner()).arg("nbdsh").args(args);
    ends(0, &format!("newer: {}", nbdsh_shown(args)), &mut command)
}

/// Scripts are shown by their number of lines.
fn nbdsh_shown(args: &[&str]) -> String {
    let mut shown = "nbdsh".to_owned();
    for arg in args {
        match arg.lines().count() {
            0 | 1 => shown += &format!(" {arg}"),
            lines => shown += &format!(" '({lines} lines)'"),
        }
    }
    shown
}

impl Verdict {
    /// Standard output, parsed.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}
