//! Checks of images beside the syncs: whether the newest one boots, and whether the store still has all of them.
//!
//! `smc-image` makes them, in a process without smcd's privileges and with the least priority, one at a time. Under systemd it is a
//! transient unit with limits of its own. A check gives way to every sync: it is ended, and made when no sync runs any more; a
//! verification then continues where it stopped.

use super::background::Task;
use super::hooks::Output;
use super::parts::Parts;
use crate::job::{Check, Checked, JobRecord};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How often is looked after a check.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long a check that is ended may take to write down how far it came.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Exit code of smc-image for an image that does not boot, and for damage.
const NOT_BOOTED: i32 = 1;
const DAMAGED: i32 = 3;

/// Begins the check that is due, if none is being made and no sync is in its way.
pub fn begin_due(parts: &Arc<Parts>, jobs: &[JobRecord]) {
    if is_in_the_way(parts) {
        return;
    }
    let now = parts.now();
    let due = jobs.iter().find_map(|job| Some((job, job.check_due(&now)?)));
    if let Some((job, check)) = due {
        let job = job.clone();
        parts.in_background(Task::Check, move |parts| make(parts, &job, check));
    }
}

/// Whether a check must not be made now.
fn is_in_the_way(parts: &Parts) -> bool {
    let syncs = !parts.config.checks_beside_syncs && !parts.live.is_empty();
    syncs || parts.table.lock().is_closing()
}

fn make(parts: &Arc<Parts>, job: &JobRecord, check: Check) {
    // What is on a target is checked there: no job with a target has checks.
    let Some(store) = job.place.store() else { return };
    let stopped = || is_in_the_way(parts);
    let made = match check {
        Check::Boot(sequence) => boot(job, store, sequence, &stopped),
        Check::Verify(_) => verify(parts, job, store, &stopped),
    };
    let (is_made, good, text) = match made {
        Ok(None) => return,
        Ok(Some((good, text))) => (true, good, text),
        Err(error) => (false, false, format!("{}: {error:#}", failure(job, check))),
    };
    let checked = Checked {
        sequence: check.sequence(),
        finished: parts.now().wall,
        good,
        is_made,
        text,
    };
    keep(parts, job, check, checked);
}

fn failure(job: &JobRecord, check: Check) -> String {
    match check {
        Check::Boot(sequence) => format!("it could not be checked whether {} boots", job.label(sequence)),
        Check::Verify(_) => format!("the images of {} could not be verified", job.name),
    }
}

/// Writes down what a check found.
fn keep(parts: &Parts, job: &JobRecord, check: Check, checked: Checked) {
    let text = &checked.text;
    match checked.good {
        true => tracing::info!(job = job.name, "{}", text.lines().next().unwrap_or_default()),
        false => tracing::warn!(job = job.name, "{text}"),
    }
    update(parts, job, |checks| match check {
        Check::Boot(_) => checks.booted = Some(checked),
        Check::Verify(_) => {
            checks.verified = Some(checked);
            checks.is_verifying = false;
        }
    });
}

fn update(parts: &Parts, job: &JobRecord, change: impl FnOnce(&mut crate::job::ImageChecks)) {
    let saved = parts.table.update(&job.name, |job| {
        change(&mut job.checks);
        Ok(None)
    });
    if let Err(error) = saved {
        tracing::warn!(
            job = job.name,
            "what a check of its images found is lost: {error}"
        );
    }
}

/// Whether an image boots, and what to say of it; `None` if the check was ended early.
fn boot(
    job: &JobRecord,
    store: &Path,
    sequence: u64,
    stopped: &dyn Fn() -> bool,
) -> Result<Option<(bool, String)>> {
    let image = job.label(sequence);
    let Some(ended) = Process::start(store, &["boot", &image, "--check"], true)?.wait(stopped)? else {
        return Ok(None);
    };
    match ended.status.code() {
        Some(0) => Ok(Some((true, ended.said))),
        // An image without a verdict, because QEMU is missing or anything else failed, has nothing on standard output.
        Some(NOT_BOOTED | DAMAGED) if !ended.said.is_empty() => Ok(Some((false, ended.said))),
        _ => bail!("{}", ended.complaint()),
    }
}

/// Whether all images of a job are undamaged, and what to say of it; `None` if the verification was ended early.
fn verify(
    parts: &Parts,
    job: &JobRecord,
    store: &Path,
    stopped: &dyn Fn() -> bool,
) -> Result<Option<(bool, String)>> {
    let rate = parts.config.verify_rate_bytes.to_string();
    let run = |more: &[&str]| {
        let fixed = ["verify", &job.name, "--rate", &rate];
        Process::start(store, &[&fixed, more].concat(), false)?.wait(stopped)
    };
    if job.checks.is_verifying {
        match run(&["--continue"])? {
            None => return Ok(None),
            Some(ended) if ended.is_verified() => return Ok(Some(ended.verified())),
            // Nothing is left to continue, because a sync or a command of the user's has verified meanwhile.
            Some(_) => {}
        }
    }
    update(parts, job, |checks| checks.is_verifying = true);
    match run(&[])? {
        None => Ok(None),
        Some(ended) if ended.is_verified() => Ok(Some(ended.verified())),
        Some(ended) => bail!("{}", ended.complaint()),
    }
}

/// `smc-image` at work.
struct Process {
    child: Child,
    /// The transient unit that it runs in.
    unit: Option<String>,
    said: Output,
    complained: Output,
}

/// How it ended.
struct Ended {
    status: ExitStatus,
    said: String,
    complained: String,
}

impl Process {
    fn start(store: &Path, arguments: &[&str], is_guest: bool) -> Result<Self> {
        let unit = runs_under_systemd().then(|| format!("smc-check-{}.service", std::process::id()));
        let mut command = match &unit {
            Some(unit) => in_unit(unit, store, is_guest),
            None => in_background(),
        };
        let (said, stdout) = Output::piped()?;
        let (complained, stderr) = Output::piped()?;
        let child = command
            .arg(program())
            .args(arguments)
            .arg("--store")
            .arg(store)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .context("start smc-image")?;
        Ok(Self {
            child,
            unit,
            said,
            complained,
        })
    }

    /// Waits for its end; `None` if it was ended because `stopped` said so.
    fn wait(mut self, stopped: &dyn Fn() -> bool) -> Result<Option<Ended>> {
        loop {
            if let Some(status) = self.child.try_wait().context("wait for smc-image")? {
                return Ok(Some(Ended {
                    status,
                    said: self.said.text(),
                    complained: self.complained.text(),
                }));
            }
            if stopped() {
                self.end();
                return Ok(None);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn end(&mut self) {
        match (&self.unit, i32::try_from(self.child.id())) {
            (Some(unit), _) => {
                // It returns when the unit has ended.
                let _ = Command::new("systemctl").args(["stop", unit]).status();
            }
            // It has not been waited for: the number is nobody else's.
            (None, Ok(pid)) => {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            (None, Err(_)) => {}
        }
        let until = Instant::now() + END_PATIENCE;
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < until {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    fn complaint(&self) -> String {
        match (self.complained.is_empty(), self.said.is_empty()) {
            (false, _) => self.complained.clone(),
            (true, false) => self.said.clone(),
            (true, true) => format!("smc-image ended with {}", self.status),
        }
    }

    /// Whether a verification came to its end, with damage or without.
    fn is_verified(&self) -> bool {
        matches!(self.status.code(), Some(0 | DAMAGED))
    }

    /// What a verification found: the sum if all is well, and otherwise everything.
    fn verified(self) -> (bool, String) {
        match self.status.code() {
            Some(0) => (true, self.said.lines().last().unwrap_or_default().to_owned()),
            _ => (false, [self.said, self.complained].join("\n").trim().to_owned()),
        }
    }
}

/// The program that belongs to this smcd; the one in PATH if there is none beside it.
fn program() -> PathBuf {
    let own = std::env::current_exe().ok();
    let beside = own.map(|own| own.with_file_name("smc-image"));
    let beside = beside.filter(|path| path.is_file());
    beside.unwrap_or_else(|| "smc-image".into())
}

/// systemd gives every unit that it starts an identity.
fn runs_under_systemd() -> bool {
    std::env::var_os("INVOCATION_ID").is_some() && freeze::is_systemd_running()
}

/// Behind everything else on the machine, and ended with smcd.
fn in_background() -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "TERM",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--no-new-privs",
        "nice",
        "-n19",
        "ionice",
        "-c3",
    ]);
    command
}

/// Properties of the transient unit, see systemd.exec(5) and systemd.resource-control(5). It may read everything that root owns, write to
/// the store, and nothing else. `RestrictSUIDSGID=` would also take away openat2(2), without which no store is read.
const CONFINED: &[&str] = &[
    "BindsTo=smcd.service",
    "CapabilityBoundingSet=",
    "CPUWeight=10",
    "DeviceAllow=/dev/kvm rw",
    "DevicePolicy=closed",
    "IOSchedulingClass=idle",
    "LockPersonality=yes",
    "MemoryMax=4G",
    "Nice=19",
    "NoNewPrivileges=yes",
    "PrivateNetwork=yes",
    "PrivateTmp=yes",
    "ProtectControlGroups=yes",
    "ProtectHome=read-only",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectSystem=strict",
    "RestrictAddressFamilies=AF_UNIX",
    "RestrictNamespaces=yes",
    "TasksMax=256",
    "TimeoutStopSec=10s",
];

fn in_unit(unit: &str, store: &Path, is_guest: bool) -> Command {
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--wait", "--pipe", "--collect", "--unit", unit]);
    command.args(CONFINED.iter().map(|property| format!("--property={property}")));
    let mut writable = OsString::from("--property=ReadWritePaths=");
    writable.push(OsStr::new(store));
    command.arg(writable);
    if is_guest {
        // smc-image itself gives up earlier.
        command.arg("--property=RuntimeMaxSec=30min");
    }
    command.arg("--");
    command
}
