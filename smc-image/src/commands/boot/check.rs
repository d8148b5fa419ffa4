//! A boot check: a verdict, kept beside the image, and told.

use crate::commands::verdict;
use crate::exit;
use crate::guest::machine::{self, Described, Started, Wanted};
use crate::guest::probe::{Probe, Question};
use crate::guest::watch::{Check, Seen, watch};
use anyhow::Context as _;
use boot::{Diagnosis, Network, Problem, Running};
use cli::interrupt::Interrupt;
use cli::output;
use imagefmt::{BootMachine, BootProblem, BootResult, BootVerdict, Image, Store};
use jiff::Timestamp;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Lines of the console that are kept.
const LINES_KEPT: usize = 40;

/// What is to be checked.
#[derive(Debug)]
pub struct BootCheck {
    /// What is waited for.
    pub check: Check,
    /// At most for so long.
    pub timeout: Duration,
    /// Whether the console is shown.
    pub shows_console: bool,
    /// Whether the result is told as JSON.
    pub json: bool,
}

impl BootCheck {
    /// Boots the image, keeps the verdict and tells it.
    ///
    /// # Errors
    /// Where the guest could not be started, somebody interrupts, or the verdict cannot be kept. That an image does not
    /// boot is an exit code.
    pub fn run(
        &self,
        store: &Store,
        image: &Image,
        wanted: &Wanted,
        interrupt: &Interrupt,
    ) -> anyhow::Result<ExitCode> {
        let started = Timestamp::now();
        let deadline = Instant::now() + self.timeout;
        let guest = machine::start(image, wanted, interrupt)?;
        let (result, failure) = self.watch(guest, image, wanted, started, deadline, interrupt)?;
        let verdict = BootVerdict::new(image.manifest(), result);
        let kept = store.keep_boot_verdict(image, &verdict);
        output::unless_closed(verdict::tell(image.id(), &verdict, self.json))?;
        kept.context("the result of the boot check is lost")?;
        Ok(match (verdict.booted, failure) {
            (true, _) => ExitCode::SUCCESS,
            (false, None) => ExitCode::FAILURE,
            (false, Some(_)) => ExitCode::from(exit::DAMAGED),
        })
    }

    /// What is asked beside the console.
    fn question(&self, running: &mut Running, image: &Image, network: &Network) -> Option<Question> {
        let forwards = network.forwards();
        Some(match &self.check {
            Check::Login | Check::Console(_) => return None,
            Check::Port(port) => {
                let forward = forwards.iter().find(|forward| forward.guest == *port)?;
                Question::Port(forward.host)
            }
            Check::Agent => Question::Agent(running.take_agent()?),
            Check::Systemd => Question::Systemd(running.take_agent()?),
            Check::Script(program) => {
                let forwards = forwards.iter().map(ToString::to_string);
                let forwards = forwards.collect::<Vec<_>>().join(" ");
                let variables = vec![("SMC_IMAGE", image.id().to_string()), ("SMC_FORWARDS", forwards)];
                Question::Script(program.clone(), variables)
            }
        })
    }

    /// What came, and why the guest could not read its disks if it could not.
    fn watch(
        &self,
        guest: Started,
        image: &Image,
        wanted: &Wanted,
        started: Timestamp,
        deadline: Instant,
        interrupt: &Interrupt,
    ) -> anyhow::Result<(BootResult, Option<String>)> {
        let Started {
            mut running,
            disks,
            described,
            socket: _socket,
        } = guest;
        let shows = self.shows_console;
        let question = self.question(&mut running, image, &wanted.network);
        let probe = question.map(Probe::begin).transpose()?;
        let seen = watch(
            &mut running,
            Some(&self.check),
            probe.as_ref(),
            Some(deadline),
            shows,
            interrupt,
        )?;
        drop(probe);
        let screenshot = if seen.powered_off {
            None
        } else {
            // An older QEMU makes none; the rest is worth keeping.
            running
                .screenshot()
                .map_err(|error| tracing::warn!("no picture of the screen: {error}"))
                .ok()
        };
        let qemu = running.qemu_version().to_owned();
        let qemu_end = running.end();
        let failure = disks.failure();
        let console = seen.transcript.tail(LINES_KEPT);
        let result = BootResult {
            started,
            finished: Timestamp::now(),
            check: self.check.in_words(),
            kernel_ms: seen.kernel.map(milliseconds),
            reached_ms: seen.reached.map(milliseconds),
            problem: problem(seen, &described, qemu_end, failure.as_deref()),
            machine: BootMachine {
                firmware: described.firmware,
                accelerator: described.accelerator.to_string(),
                disk_bus: wanted.bus.to_string(),
                memory_mib: wanted.memory_mib,
                cpus: wanted.cpus,
                network: wanted.network != Network::None,
            },
            console,
            screenshot,
            smc: env!("CARGO_PKG_VERSION").to_owned(),
            qemu,
        };
        Ok((result, failure))
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Why it did not boot; nothing if it did. What could not be read comes first: the rest follows from it.
fn problem(
    seen: Seen,
    described: &Described,
    qemu_end: Option<String>,
    failure: Option<&str>,
) -> Option<BootProblem> {
    if seen.reached.is_some() {
        return None;
    }
    let mut diagnosis = seen.findings.diagnosis(seen.powered_off);
    // A BIOS starts a boot sector without code, too, and nothing comes of it.
    if diagnosis.problem == Problem::Silent && described.has_nothing_to_start {
        diagnosis.problem = Problem::NoBootableDevice;
    }
    if let Some(failure) = failure {
        let what = format!("the image cannot be read: {failure}; then: {}", diagnosis.what());
        let advice = "run 'smc-image verify' on the image, and check another one";
        return Some(named("unreadable", what, advice, diagnosis));
    }
    if let Some(how) = qemu_end {
        let advice = "try --accelerator tcg; see the last lines of the console";
        return Some(named("qemu", how, advice, diagnosis));
    }
    if let Some(why) = seen.refused {
        if diagnosis.problem == Problem::FilesystemFull || says_full(&why) {
            let full = Problem::FilesystemFull;
            return Some(named(full.name(), why, full.advice(), diagnosis));
        }
        let advice = "see the last lines of the console, and boot it without a check to look at it";
        return Some(named("check-failed", why, advice, diagnosis));
    }
    let (name, what, advice) = (
        diagnosis.problem.name(),
        diagnosis.what(),
        diagnosis.problem.advice(),
    );
    Some(named(name, what, advice, diagnosis))
}

/// Whether what the guest says has this cause.
fn says_full(why: &str) -> bool {
    why.to_lowercase().contains("no space left")
}

fn named(name: &str, what: String, advice: &str, diagnosis: Diagnosis) -> BootProblem {
    BootProblem {
        name: name.to_owned(),
        what,
        advice: advice.to_owned(),
        device: diagnosis.device,
        unit: diagnosis.unit,
        line: diagnosis.line,
    }
}
