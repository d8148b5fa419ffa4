//! Programs and calls that may hang, with a deadline: neither is waited for longer.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Where programs are looked for: a service's own search path may be shorter.
const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The output of a running program, readable until the deadline. Dropping it ends the program.
#[derive(Debug)]
pub(crate) struct Output {
    child: Option<Child>,
    stdout: ChildStdout,
    deadline: Instant,
}

impl Output {
    /// Starts a program.
    ///
    /// # Errors
    /// `NotFound` where the machine does not have it; otherwise when it cannot be started.
    pub(crate) fn of(program: &str, args: &[&str], stdin: Stdio, deadline: Instant) -> io::Result<Output> {
        let mut child = Command::new(program)
            .args(args)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take();
        let stdout = stdout.ok_or_else(|| io::Error::other("the program has no output"))?;
        Ok(Output {
            child: Some(child),
            stdout,
            deadline,
        })
    }
}

impl Read for Output {
    /// `TimedOut` once the deadline has passed.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        let mut ready = [PollFd::new(self.stdout.as_fd(), PollFlags::POLLIN)];
        if millis == 0 || poll(&mut ready, PollTimeout::from(millis))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stdout.read(buffer)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let _ = child.kill();
        // One that is stuck in the kernel takes no signal until its I/O ends.
        if !matches!(child.try_wait(), Ok(Some(_))) {
            thread::spawn(move || child.wait());
        }
    }
}

/// All that a program prints, at most `max_bytes` of it.
///
/// # Errors
/// When it cannot be started, ends with a failure, or takes longer than `timeout`.
pub(crate) fn output_of(
    program: &str,
    args: &[&str],
    timeout: Duration,
    max_bytes: u64,
) -> io::Result<String> {
    let output = Output::of(program, args, Stdio::null(), Instant::now() + timeout)?;
    let mut bytes = Vec::new();
    output.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What `work` yields, if it does so in time. What hangs in the kernel is left behind in its thread.
pub(crate) fn within<T: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let started = thread::Builder::new().spawn(move || {
        let _ = sender.send(work());
    });
    started.ok()?;
    receiver.recv_timeout(timeout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_ended_at_the_deadline() {
        let hung = output_of("sleep", &["600"], Duration::from_millis(50), 10);
        assert_eq!(
            hung.expect_err("nothing is printed").kind(),
            io::ErrorKind::TimedOut
        );
    }

    #[test]
    fn a_call_that_hangs_is_left_behind() {
        let (hold, held) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(20), move || held.recv()), None);
        drop(hold);
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
    }

    #[test]
    fn output_is_bounded_and_a_missing_program_is_told() {
        let limit = Duration::from_secs(60);
        assert_eq!(
            output_of("echo", &["hello"], limit, 4).expect("echo runs"),
            "hell"
        );
        let missing = output_of("no-such-program-of-smc", &[], limit, 4);
        assert_eq!(
            missing.expect_err("it is missing").kind(),
            io::ErrorKind::NotFound
        );
    }
}
