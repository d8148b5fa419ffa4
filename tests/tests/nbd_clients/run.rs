//! Running a client: its command line and exit code are printed, and the exit code is what was expected.

use std::ffi::OsStr;
use std::process::Command;
use testkit::process::{PATIENCE, display};
use testkit::program::{Run, run_within};
use vm_tests::kernel::cache_dir;

/// Runs a client of this machine's release, which must succeed.
pub fn run_client<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Run {
    client_ends(0, program, args)
}

/// The same, which must end with this exit code.
pub fn client_ends<S: AsRef<OsStr>>(code: i32, program: &str, args: &[S]) -> Run {
    let mut command = Command::new(program);
    command.args(args);
    ends(code, &display(&command), &command)
}

/// Runs a client of the newer release that `scripts/setup.sh` unpacked.
pub fn newer<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Run {
    let mut shown = Command::new(program);
    shown.args(args);
    let mut command = Command::new(runner());
    command.arg(program).args(args);
    ends(0, &format!("newer: {}", display(&shown)), &command)
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
pub fn ends(code: i32, shown: &str, command: &Command) -> Run {
    let run = run_within(PATIENCE, command);
    println!("exit {:?}: {shown}", run.code);
    assert_eq!(run.code, Some(code), "{shown}\n{}{}", run.stdout, run.stderr);
    run
}

/// Runs `nbdsh` of this machine's release, by the system's Python, which has its module; another Python may come
/// first in PATH.
pub fn nbdsh(args: &[&str]) -> Run {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "nbd"]).args(args);
    ends(0, &nbdsh_shown(args), &command)
}

/// Runs `nbdsh` of the newer release.
pub fn newer_nbdsh(args: &[&str]) -> Run {
    let mut command = Command::new(runner());
    command.arg("nbdsh").args(args);
    ends(0, &format!("newer: {}", nbdsh_shown(args)), &command)
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
