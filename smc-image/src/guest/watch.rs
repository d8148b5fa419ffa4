//! Watching a guest's console: until what is waited for has come, or until it cannot come any more.

use super::probe::Probe;
use anyhow::Context as _;
use boot::diagnosis::{is_kernel_line, is_login_prompt};
use boot::{Findings, Running, Said, Transcript};
use cli::interrupt::Interrupt;
use regex::Regex;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often signals are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// A guest that has failed says more about it: until it has been silent for this long,
const QUIET_AFTER_END: Duration = Duration::from_secs(2);
/// and at most for this long.
const LONGEST_AFTER_END: Duration = Duration::from_secs(10);

/// What is waited for.
#[derive(Debug)]
pub enum Check {
    /// A login prompt.
    Login,
    /// A line that matches.
    Console(Regex),
    /// An answer of this port of the guest.
    Port(u16),
    /// The guest agent.
    Agent,
    /// That systemd has started everything.
    Systemd,
    /// That this program succeeds.
    Script(PathBuf),
}

impl Check {
    /// It in words.
    pub fn in_words(&self) -> String {
        match self {
            Self::Login => "login prompt".to_owned(),
            Self::Console(pattern) => format!("line on the console like {pattern}"),
            Self::Port(port) => format!("answer of port {port}"),
            Self::Agent => "guest agent".to_owned(),
            Self::Systemd => "running systemd".to_owned(),
            Self::Script(program) => format!("success of {}", program.display()),
        }
    }

    fn is_met(&self, line: &str) -> bool {
        match self {
            Self::Login => is_login_prompt(line),
            Self::Console(pattern) => pattern.is_match(line),
            Self::Port(_) | Self::Agent | Self::Systemd | Self::Script(_) => false,
        }
    }
}

/// What was seen. Times are from the start.
#[derive(Debug, Default)]
pub struct Seen {
    /// The kernel's first line.
    pub kernel: Option<Duration>,
    /// What was waited for.
    pub reached: Option<Duration>,
    /// Why what was waited for will not come, as the guest or the script says.
    pub refused: Option<String>,
    /// Whether the guest ended by itself.
    pub powered_off: bool,
    /// All that was written.
    pub transcript: Transcript,
    /// What it says.
    pub findings: Findings,
}

/// Watches until `check` is met, the guest has failed or ended, or the time is up; `None` waits for its end. `probe` asks what the
/// console does not tell.
///
/// # Errors
/// An interrupt, and where the console cannot be read or shown.
pub fn watch(
    running: &mut Running,
    check: Option<&Check>,
    probe: Option<&Probe>,
    deadline: Option<Instant>,
    shows_console: bool,
    interrupt: &Interrupt,
) -> anyhow::Result<Seen> {
    let mut watcher = Watcher {
        check,
        seen: Seen::default(),
        failed: None,
        last_said: Instant::now(),
    };
    while !watcher.is_over(deadline) {
        interrupt.check()?;
        if let Some(answer) = probe.and_then(Probe::answer) {
            watcher.take_answer(answer, running.elapsed());
            continue;
        }
        let bytes = match running.read(POLL_INTERVAL)? {
            Said::Nothing => continue,
            Said::End => {
                watcher.seen.powered_off = true;
                break;
            }
            Said::Bytes(bytes) => bytes.to_vec(),
        };
        if shows_console {
            show(&bytes)?;
        }
        watcher.take(&bytes, running.elapsed());
    }
    Ok(watcher.seen)
}

fn show(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .context("show the console")
}

struct Watcher<'a> {
    check: Option<&'a Check>,
    seen: Seen,
    /// Since when it is known that it does not come any more.
    failed: Option<Instant>,
    last_said: Instant,
}

impl Watcher<'_> {
    fn is_over(&self, deadline: Option<Instant>) -> bool {
        let after_end = self.check.is_some()
            && self.failed.is_some_and(|at| {
                self.last_said.elapsed() > QUIET_AFTER_END || at.elapsed() > LONGEST_AFTER_END
            });
        let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let is_answered = self.seen.reached.is_some() || self.seen.refused.is_some();
        is_answered || after_end || is_late
    }

    fn take_answer(&mut self, answer: Result<(), String>, elapsed: Duration) {
        match answer {
            Ok(()) => self.seen.reached = Some(elapsed),
            Err(why) => self.seen.refused = Some(why),
        }
    }

    fn take(&mut self, bytes: &[u8], elapsed: Duration) {
        self.last_said = Instant::now();
        let mut lines = Vec::new();
        self.seen
            .transcript
            .push(bytes, |line| lines.push(line.to_owned()));
        for line in lines {
            let ended = self.seen.findings.look_at(&line);
            self.look_at(&line, ended, elapsed);
        }
        // A prompt waits in a line that does not end.
        let line = self.seen.transcript.unfinished();
        let ended = self.seen.findings.look_at_unfinished(&line);
        self.look_at(&line, ended, elapsed);
    }

    fn look_at(&mut self, line: &str, ended: bool, elapsed: Duration) {
        if self.seen.kernel.is_none() && is_kernel_line(line) {
            self.seen.kernel = Some(elapsed);
        }
        if self.seen.reached.is_none() && self.check.is_some_and(|check| check.is_met(line)) {
            self.seen.reached = Some(elapsed);
        }
        if ended {
            self.failed.get_or_insert_with(Instant::now);
        }
    }
}
