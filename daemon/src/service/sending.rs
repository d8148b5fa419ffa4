//! A sync whose images go to a target. It waits for a target that cannot be reached, for as long as the job lives, and says so.
//!
//! ```text
//! wait until the target answers -> pre hooks -> sync -> image
//!        ^                                        |
//!        '------- post hooks <- target is away <--'
//! ```
//!
//! Whatever hooks have stopped goes on while the sync waits. What the target has made durable is not sent again.

use super::live::LiveRun;
use super::runner::Runner;
use super::targets;
use crate::engine::{self, Destination, Error, ErrorKind, Request, Synced};
use crate::targets::{how_to_enrol_again, renew_if_old, valid_until};
use api::Phase;
use imagefmt::Uuid;
use jiff::Timestamp;
use remote::{LinkOptions, LinkWait, TargetFiles};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Between two attempts to reach a target.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A target that was busy after it had said that it is not: hooks have run for nothing, and do not do so every minute.
const PAUSE_BUSY: Duration = Duration::from_secs(600);

/// A sync that has come so far before its target was lost has not failed at once.
const SETTLED: Duration = Duration::from_secs(60);

/// How often is looked whether the sync is still wanted.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Makes the image that a run is about.
///
/// # Errors
/// As [`engine::run`], but for a target that cannot be reached: that is waited for until the job's valid time has passed.
pub(super) fn sync(runner: &Runner, name: &str, request: &Request) -> engine::Result<Synced> {
    // Its counters are there from the beginning, whether the target is or not.
    runner.live.meter();
    let mut pauses = Pauses::default();
    loop {
        let files = wait_until_it_answers(runner, name, &mut pauses)?;
        runner.live.target_is_there();
        runner.pre_hooks()?;
        let begun = Instant::now();
        match attempt(runner, &files, request) {
            Err(error) if is_away(&error) && !runner.is_stopped() => {
                if begun.elapsed() > SETTLED {
                    pauses = Pauses::default();
                }
                tracing::warn!(
                    job = runner.job.name,
                    "the sync waits for target {name}: {}",
                    error.full_message()
                );
                runner.release_for_now();
                runner.live.phase(Phase::Preparing);
                let length = match error.kind() {
                    ErrorKind::Busy => PAUSE_BUSY,
                    _ => pauses.next(),
                };
                pause(runner, length, &error.full_message())?;
            }
            made => return made,
        }
    }
}

/// Whether waiting helps: the target, or the way to it, is not there, or it is busy.
fn is_away(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Busy)
}

fn refused(error: remote::Error) -> Error {
    imagefmt::Error::from(error).into()
}

fn attempt(runner: &Runner, files: &TargetFiles, request: &Request) -> engine::Result<Synced> {
    let disks = runner.open_disks(request, None)?;
    let wait = Arc::new(ForTarget {
        live: runner.live.clone(),
        warnings: Mutex::default(),
    });
    let target = engine::Target {
        files: files.clone(),
        options: LinkOptions {
            meter: runner.live.meter(),
            rate: runner.live.send_rate.clone(),
            ..LinkOptions::default()
        },
        wait: wait.clone(),
    };
    let made = engine::run(
        Destination::Target(&target),
        request,
        &disks,
        &runner.live.control,
        runner,
    );
    for warning in wait
        .warnings
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .drain(..)
    {
        engine::Observer::warn(runner, &warning);
    }
    made
}

/// Asks the target again and again, until it answers and would let a sync in. This machine may be enrolled there again meanwhile.
fn wait_until_it_answers(runner: &Runner, name: &str, pauses: &mut Pauses) -> engine::Result<TargetFiles> {
    loop {
        let files = targets::open(&runner.parts, name).map_err(refused)?;
        let why = match ask(runner, &files)? {
            Ok(remote::Status { busy: None, .. }) => return Ok(files),
            Ok(remote::Status { busy: Some(why), .. }) => format!("the target is busy: {why}"),
            Err(error) if error.kind() == remote::ErrorKind::Unreachable => {
                refuse_expired(&files, &error)?;
                error.full_message()
            }
            Err(error) => return Err(refused(error)),
        };
        pause(runner, pauses.next(), &why)?;
    }
}

/// What the target answers, which has renewed the certificate if that was old. Who stops the sync does not wait for that.
fn ask(runner: &Runner, files: &TargetFiles) -> engine::Result<remote::Result<remote::Status>> {
    let (answer, answers) = sync_channel(1);
    let files = files.clone();
    let asked = thread::Builder::new()
        .name("ask target".to_owned())
        .spawn(move || {
            let status = remote::status(&files);
            if let (Ok(_), Err(error)) = (&status, renew_if_old(&files)) {
                tracing::warn!("{error:#}");
            }
            // The sync may have been stopped.
            let _ = answer.send(status);
        });
    asked.map_err(|error| Error::other(anyhow::Error::from(error).context("start a thread")))?;
    loop {
        match answers.recv_timeout(POLL_INTERVAL) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Timeout) => refuse_stopped(runner)?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::other(anyhow::anyhow!(
                    "the target could not be asked, because of a bug in smcd"
                )));
            }
        }
    }
}

/// A target does not say that a certificate has expired: it hangs up. One that cannot be reached has said nothing, and a clock of this
/// machine that is wrong says nothing either.
fn refuse_expired(files: &TargetFiles, error: &remote::Error) -> engine::Result<()> {
    match valid_until(files) {
        _ if !error.has_hung_up() => Ok(()),
        Ok(until) if until < Timestamp::now() => Err(Error::new(
            ErrorKind::Refused,
            format!(
                "this machine's certificate for target {} has expired ({}): {}, then start the job; what happened: {}",
                files.name,
                cli::units::local_date(until),
                how_to_enrol_again(&files.name, &files.record.source),
                error.full_message(),
            ),
        )),
        _ => Ok(()),
    }
}

fn refuse_stopped(runner: &Runner) -> engine::Result<()> {
    match runner.is_stopped() {
        true => Err(Error::new(
            ErrorKind::Stopped,
            "the sync was stopped while it waited for the target",
        )),
        false => Ok(()),
    }
}

/// Waits for a while before the target is tried again, and says why.
fn pause(runner: &Runner, pause: Duration, why: &str) -> engine::Result<()> {
    runner.live.target_is_away(why, Some(pause));
    runner.progressed();
    let end = Instant::now() + pause;
    while Instant::now() < end {
        refuse_stopped(runner)?;
        refuse_outlived(runner, why)?;
        thread::sleep(POLL_INTERVAL);
    }
    runner.live.target_is_away(why, None);
    Ok(())
}

/// A job does not wait longer than it lives.
fn refuse_outlived(runner: &Runner, why: &str) -> engine::Result<()> {
    let job = runner.parts.table.job(&runner.job.name);
    let is_over = job.is_ok_and(|job| job.expires.is_due(&runner.parts.now()));
    match is_over {
        true => Err(Error::new(
            ErrorKind::Unreachable,
            format!("the valid time of the job has passed while it waited for the target: {why}"),
        )),
        false => Ok(()),
    }
}

/// Pauses that become longer, up to a minute, and of which no two jobs have the same.
#[derive(Debug, Default)]
struct Pauses {
    made: u32,
}

impl Pauses {
    fn next(&mut self) -> Duration {
        let longest = PAUSE_MIN.saturating_mul(1 << self.made.min(16)).min(PAUSE_MAX);
        self.made += 1;
        // Between half of it and all of it.
        let chance = Uuid::random().map_or(255, |random| random.bytes()[0]);
        longest / 2 + (longest / 2) * u32::from(chance) / 255
    }
}

/// Hears of a session why nothing moves.
struct ForTarget {
    live: Arc<LiveRun>,
    warnings: Mutex<Vec<String>>,
}

impl LinkWait for ForTarget {
    fn is_wanted(&self) -> bool {
        let control = &self.live.control;
        // A checkpoint is worth a moment, but not where nobody takes it.
        control.may_wait() && !(control.is_stopped() && self.live.waits_for_target())
    }

    fn held_up(&self, why: Option<&str>) {
        match why {
            Some(why) => self.live.target_is_away(why, None),
            None => self.live.target_is_there(),
        }
    }

    fn warn(&self, text: &str) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.push(text.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_become_longer_up_to_a_minute_and_differ() {
        let mut pauses = Pauses::default();
        let made: Vec<Duration> = (0..40).map(|_| pauses.next()).collect();
        for (number, pause) in made.iter().enumerate() {
            let longest = PAUSE_MIN.saturating_mul(1 << number.min(6)).min(PAUSE_MAX);
            assert!((longest / 2..=longest).contains(pause), "{number}: {pause:?}");
        }
        let late: std::collections::BTreeSet<_> = made[10..].iter().collect();
        assert!(late.len() > 5, "{late:?}");
    }
}
