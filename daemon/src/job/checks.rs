//! Which checks are made of a job's images, what the last ones found, and when the next one is due.

use super::create::{check_time, in_range};
use super::record::JobRecord;
use super::refusal::Refused;
use crate::clock::Moment;
use api::{CheckView, ChecksRequest, ChecksView, Status, limits};
use jiff::Timestamp;

/// The checks of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageChecks {
    /// Every N-th new image is booted; 0: none.
    pub boot_every_images: u32,
    /// The newest image is booted if none was booted for so long; 0: no such limit.
    pub boot_every_seconds: u64,
    /// All images are read once in such a time; 0: never.
    pub verify_every_seconds: u64,
    /// The last boot check.
    pub booted: Option<Checked>,
    /// The last verification.
    pub verified: Option<Checked>,
    /// A verification has begun and not ended: it continues where it stopped.
    pub is_verifying: bool,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The newest image that was checked.
    pub sequence: u64,
    pub finished: Timestamp,
    pub good: bool,
    /// Whether the check could be made at all. If not, it is tried again soon.
    pub is_made: bool,
    /// What the check said.
    pub text: String,
}

/// After how many seconds a check is tried again that could not be made.
const RETRY_SECONDS: u64 = 3600;

/// A check that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Whether the newest image boots.
    Boot(u64),
    /// Whether the store has all of the job's images, the newest of which is this one.
    Verify(u64),
}

impl Check {
    /// The newest image that it looks at.
    pub fn sequence(self) -> u64 {
        match self {
            Self::Boot(sequence) | Self::Verify(sequence) => sequence,
        }
    }
}

impl ImageChecks {
    /// Changes what a request names.
    ///
    /// # Errors
    /// `Invalid` for a value that is not allowed: the message names it and its range.
    pub fn change(&mut self, request: &ChecksRequest) -> Refused<()> {
        if let Some(images) = request.boot_every_images {
            in_range("boot_every_images", images, &limits::BOOT_EVERY_IMAGES)?;
            self.boot_every_images = images;
        }
        if let Some(seconds) = request.boot_every_seconds {
            check_every("boot_every", seconds)?;
            self.boot_every_seconds = seconds;
        }
        if let Some(seconds) = request.verify_every_seconds {
            check_every("verify_every", seconds)?;
            self.verify_every_seconds = seconds;
        }
        Ok(())
    }

    /// What the last checks found that were not good, in a sentence each.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        let last = [&self.booted, &self.verified].into_iter().flatten();
        last.filter(|checked| !checked.good)
            .filter_map(|checked| checked.text.lines().next())
    }

    /// As clients see it.
    pub fn view(&self, job: &JobRecord) -> ChecksView {
        let view = |checked: &Checked| CheckView {
            image: job.label(checked.sequence),
            finished: checked.finished,
            good: checked.good,
            text: checked.text.clone(),
        };
        ChecksView {
            boot_every_images: self.boot_every_images,
            boot_every_seconds: self.boot_every_seconds,
            verify_every_seconds: self.verify_every_seconds,
            booted: self.booted.as_ref().map(view),
            verified: self.verified.as_ref().map(view),
        }
    }

    fn is_boot_due(&self, newest: u64, now: &Moment) -> bool {
        let is_wanted = self.boot_every_images > 0 || self.boot_every_seconds > 0;
        let last = match &self.booted {
            None => return is_wanted,
            Some(last) if !last.is_made => return is_wanted && is_over(last, RETRY_SECONDS, now),
            Some(last) => last,
        };
        let new_images = newest.saturating_sub(last.sequence);
        let is_turn = self.boot_every_images > 0 && new_images >= self.boot_every_images.into();
        is_turn || (new_images > 0 && is_over(last, self.boot_every_seconds, now))
    }

    fn is_verification_due(&self, now: &Moment) -> bool {
        match &self.verified {
            None => self.verify_every_seconds > 0,
            Some(last) if !last.is_made => self.verify_every_seconds > 0 && is_over(last, RETRY_SECONDS, now),
            Some(last) => is_over(last, self.verify_every_seconds, now),
        }
    }
}

fn check_every(what: &str, seconds: u64) -> Refused<()> {
    match seconds {
        0 => Ok(()),
        seconds => check_time(what, seconds, &limits::CHECK_EVERY),
    }
}

/// Whether so much time has passed since a check, by the wall clock. A clock that was set back must not put it off for ever.
fn is_over(last: &Checked, seconds: u64, now: &Moment) -> bool {
    let passed = now.wall.duration_since(last.finished).as_secs();
    seconds > 0 && u64::try_from(passed).map_or(true, |passed| passed >= seconds)
}

impl JobRecord {
    /// The check that is due now. Those of a job that was given up are not made any more.
    pub fn check_due(&self, now: &Moment) -> Option<Check> {
        let newest = *self.images.last()?;
        let is_kept = matches!(
            self.status,
            Status::Waiting | Status::Stopped | Status::InError | Status::Finished
        );
        if !is_kept || self.unconfirmed {
            return None;
        }
        if self.checks.is_boot_due(newest, now) {
            return Some(Check::Boot(newest));
        }
        let verify = self.checks.is_verification_due(now);
        verify.then_some(Check::Verify(newest))
    }
}

#[cfg(test)]
mod tests {
    use super::super::create::{new_record, tests as create};
    use super::*;
    use crate::clock::{Clock, HandClock};
    use crate::config::Config;
    use std::time::Duration;

    const DAY: u64 = 86_400;

    fn job(clock: &HandClock, images: &[u64], request: &ChecksRequest) -> JobRecord {
        let config = Config::load(None).unwrap();
        let mut job = new_record(&create::good(), create::resolved_input(), &config, &clock.now()).unwrap();
        job.status = Status::Waiting;
        job.images = images.to_vec();
        job.checks.change(request).unwrap();
        job
    }

    fn checked(sequence: u64, clock: &HandClock) -> Option<Checked> {
        Some(Checked {
            sequence,
            finished: clock.now().wall,
            good: true,
            is_made: true,
            text: String::new(),
        })
    }

    #[test]
    fn every_nth_image_is_booted() {
        let clock = HandClock::new();
        let every = |images| ChecksRequest {
            boot_every_images: Some(images),
            ..ChecksRequest::default()
        };
        assert_eq!(job(&clock, &[1, 2], &every(0)).check_due(&clock.now()), None);
        let mut job = job(&clock, &[7], &every(3));
        assert_eq!(
            job.check_due(&clock.now()),
            Some(Check::Boot(7)),
            "none was booted"
        );
        job.checks.booted = checked(7, &clock);
        for (images, due) in [
            (vec![7], None),
            (vec![7, 9], None),
            (vec![9, 10], Some(Check::Boot(10))),
        ] {
            job.images = images;
            assert_eq!(job.check_due(&clock.now()), due);
        }
        job.images.clear();
        assert_eq!(job.check_due(&clock.now()), None);
    }

    #[test]
    fn times_are_by_the_wall_clock_and_one_that_was_set_back_puts_nothing_off() {
        let clock = HandClock::new();
        let request = ChecksRequest {
            boot_every_images: None,
            boot_every_seconds: Some(2 * DAY),
            verify_every_seconds: Some(7 * DAY),
        };
        let mut job = job(&clock, &[1, 2], &request);
        assert_eq!(job.check_due(&clock.now()), Some(Check::Boot(2)));
        job.checks.booted = checked(1, &clock);
        assert_eq!(job.check_due(&clock.now()), Some(Check::Verify(2)));
        job.checks.verified = checked(2, &clock);
        assert_eq!(job.check_due(&clock.now()), None);
        clock.pass(Duration::from_secs(2 * DAY));
        assert_eq!(job.check_due(&clock.now()), Some(Check::Boot(2)));
        job.checks.booted = checked(2, &clock);
        clock.pass(Duration::from_secs(4 * DAY));
        assert_eq!(
            job.check_due(&clock.now()),
            None,
            "there is no newer image to boot"
        );
        clock.pass(Duration::from_secs(DAY));
        assert_eq!(job.check_due(&clock.now()), Some(Check::Verify(2)));
        job.checks.verified = checked(2, &clock);
        clock.set_wall(-400 * 86_400);
        assert_eq!(job.check_due(&clock.now()), Some(Check::Verify(2)));
    }

    #[test]
    fn what_could_not_be_made_is_tried_again_after_an_hour() {
        let clock = HandClock::new();
        let request = ChecksRequest {
            boot_every_images: Some(5),
            boot_every_seconds: None,
            verify_every_seconds: Some(7 * DAY),
        };
        let mut job = job(&clock, &[1], &request);
        let failed = checked(1, &clock).map(|checked| Checked {
            is_made: false,
            ..checked
        });
        job.checks.booted.clone_from(&failed);
        job.checks.verified = failed;
        assert_eq!(job.check_due(&clock.now()), None);
        clock.pass(Duration::from_secs(3600));
        assert_eq!(job.check_due(&clock.now()), Some(Check::Boot(1)));
        job.checks.booted = checked(1, &clock);
        assert_eq!(job.check_due(&clock.now()), Some(Check::Verify(1)));
    }

    #[test]
    fn no_check_is_made_of_a_job_that_runs_was_given_up_or_is_not_confirmed() {
        let clock = HandClock::new();
        let request = ChecksRequest {
            boot_every_images: Some(1),
            ..ChecksRequest::default()
        };
        let mut job = job(&clock, &[1], &request);
        for status in Status::ALL {
            job.status = status;
            let is_kept = matches!(
                status,
                Status::Waiting | Status::Stopped | Status::InError | Status::Finished
            );
            assert_eq!(job.check_due(&clock.now()).is_some(), is_kept, "{status}");
        }
        job.status = Status::Waiting;
        job.unconfirmed = true;
        assert_eq!(job.check_due(&clock.now()), None);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let mut checks = ImageChecks::default();
        for request in [
            ChecksRequest {
                boot_every_images: Some(1001),
                ..ChecksRequest::default()
            },
            ChecksRequest {
                boot_every_seconds: Some(DAY - 1),
                ..ChecksRequest::default()
            },
            ChecksRequest {
                verify_every_seconds: Some(91 * DAY),
                ..ChecksRequest::default()
            },
        ] {
            assert!(checks.change(&request).is_err(), "{request:?}");
            assert_eq!(checks, ImageChecks::default());
        }
    }
}
