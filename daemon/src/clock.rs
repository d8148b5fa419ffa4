//! Time. Everything that waits goes by one clock, which tests drive.
//!
//! Spans are measured by CLOCK_BOOTTIME: it counts through a suspend and knows nothing of a wall clock that is set.
//! Only across a reboot, where it begins anew, the wall clock has to do, and is believed no further than the span.

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One point in time, as all clocks show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// What people call it. It may jump.
    pub wall: Timestamp,
    /// Since the machine booted, suspends included.
    pub since_boot: Duration,
    /// Which boot that was.
    pub boot: Arc<str>,
}

/// Where time comes from.
pub trait Clock: Send + Sync + Debug {
    /// Now.
    fn now(&self) -> Moment;

    /// How long the scheduler may sleep before it looks again: a clock that is driven moves at any time.
    fn poll_interval(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    boot: Arc<str>,
}

impl SystemClock {
    /// Reads which boot this is.
    pub fn new() -> Self {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            boot: id.trim().into(),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        // Neither clock can fail on a kernel that has them (2.6.39).
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
        Moment {
            wall: Timestamp::now(),
            since_boot: since_boot.unwrap_or_default(),
            boot: self.boot.clone(),
        }
    }

    fn poll_interval(&self) -> Duration {
        // A deadline is met to the second; this also bounds what a suspend or a set clock can delay.
        Duration::from_secs(1)
    }
}

/// The machine's clocks, moved by what a file says: hours pass in no time. For laboratories and tests.
#[derive(Debug)]
pub struct TestClock {
    system: SystemClock,
    file: PathBuf,
    last: Mutex<Shift>,
}

/// What the file holds, as JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shift {
    /// Seconds that have passed beside those that did.
    pub elapsed_seconds: u64,
    /// Seconds by which the wall clock was set besides.
    pub wall_jump_seconds: i64,
    /// How often the machine was rebooted.
    pub reboots: u32,
}

impl TestClock {
    /// A clock that is moved by this file; one that is not there moves nothing.
    pub fn new(file: PathBuf) -> Self {
        Self {
            system: SystemClock::new(),
            file,
            last: Mutex::default(),
        }
    }

    /// What the file says now; while it is being written, what it said before.
    fn shift(&self) -> Shift {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(text) = fs::read(&self.file)
            && let Ok(shift) = serde_json::from_slice(&text)
        {
            *last = shift;
        }
        *last
    }
}

impl Clock for TestClock {
    fn now(&self) -> Moment {
        let shift = self.shift();
        let now = self.system.now();
        let elapsed = Duration::from_secs(shift.elapsed_seconds);
        let forward = i64::try_from(shift.elapsed_seconds).unwrap_or(i64::MAX);
        let wall = forward.saturating_add(shift.wall_jump_seconds);
        Moment {
            wall: later(now.wall, wall),
            since_boot: now.since_boot.saturating_add(elapsed),
            boot: format!("{}-{}", now.boot, shift.reboots).into(),
        }
    }

    fn poll_interval(&self) -> Duration {
        Duration::from_millis(10)
    }
}

/// The end of a span, kept so that it means the same after a restart or reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadline {
    /// The boot in which it was set.
    pub boot: String,
    /// In that boot: milliseconds since it began.
    pub since_boot_ms: u64,
    /// In any other: the wall clock's time.
    pub wall: Timestamp,
    /// Seconds that it was away when it was set: it is never further.
    pub span_seconds: u64,
}

impl Deadline {
    /// `span` from now.
    pub fn after(now: &Moment, span: Duration) -> Self {
        Self {
            boot: now.boot.to_string(),
            since_boot_ms: millis(now.since_boot.saturating_add(span)),
            wall: later(now.wall, i64::try_from(span.as_secs()).unwrap_or(i64::MAX)),
            span_seconds: span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0)),
        }
    }

    /// How long until then; nothing if it has passed.
    pub fn remaining(&self, now: &Moment) -> Duration {
        if *self.boot == *now.boot {
            let left = self.since_boot_ms.saturating_sub(millis(now.since_boot));
            return Duration::from_millis(left);
        }
        // A wall clock that was set back does not put it off for longer than it was away.
        let left = self.wall.duration_since(now.wall);
        let left = u64::try_from(left.as_millis()).unwrap_or(0);
        Duration::from_millis(left).min(Duration::from_secs(self.span_seconds))
    }

    /// Whether it has passed.
    pub fn is_due(&self, now: &Moment) -> bool {
        self.remaining(now).is_zero()
    }

    /// The same deadline by the clocks of this boot: what happens to the wall clock from now on moves it no more.
    pub fn anchored(&self, now: &Moment) -> Self {
        if *self.boot == *now.boot {
            return self.clone();
        }
        Self {
            span_seconds: self.span_seconds,
            ..Self::after(now, self.remaining(now))
        }
    }

    /// The same deadline, noted with what is left of it: after a reboot it is never further away than that.
    pub fn noted(&self, now: &Moment) -> Self {
        Self::after(now, self.remaining(now))
    }

    /// The same deadline in this boot, where only time counts in which the machine was on. What passed after it was noted
    /// last is not known, and does not count.
    pub fn anchored_by_measure(&self, now: &Moment) -> Self {
        if *self.boot == *now.boot {
            return self.clone();
        }
        Self::after(now, Duration::from_secs(self.span_seconds))
    }

    /// What the wall clock shows then, if nobody sets it meanwhile.
    pub fn wall(&self, now: &Moment) -> Timestamp {
        let left = i64::try_from(self.remaining(now).as_secs()).unwrap_or(i64::MAX);
        later(now.wall, left)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A point in time `seconds` later, or as far as time stamps reach.
pub fn later(from: Timestamp, seconds: i64) -> Timestamp {
    from.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(if seconds < 0 {
            Timestamp::MIN
        } else {
            Timestamp::MAX
        })
}

/// A clock in memory that tests set by hand.
#[cfg(test)]
#[derive(Debug)]
pub struct HandClock(Mutex<Moment>);

#[cfg(test)]
impl HandClock {
    pub fn new() -> Self {
        Self(Mutex::new(Moment {
            wall: "2026-11-24T09:00:00Z".parse().unwrap(),
            since_boot: Duration::from_secs(1000),
            boot: "first".into(),
        }))
    }

    /// Time passes.
    pub fn pass(&self, span: Duration) {
        let mut now = self.0.lock().unwrap();
        now.since_boot += span;
        now.wall = later(now.wall, i64::try_from(span.as_secs()).unwrap());
    }

    /// Somebody sets the wall clock.
    pub fn set_wall(&self, by_seconds: i64) {
        let mut now = self.0.lock().unwrap();
        now.wall = later(now.wall, by_seconds);
    }

    /// The machine is off for `span` and boots again.
    pub fn reboot(&self, span: Duration) {
        self.pass(span);
        let mut now = self.0.lock().unwrap();
        now.boot = format!("{}'", now.boot).into();
        now.since_boot = Duration::from_secs(5);
    }
}

#[cfg(test)]
impl Clock for HandClock {
    fn now(&self) -> Moment {
        self.0.lock().unwrap().clone()
    }

    fn poll_interval(&self) -> Duration {
        Duration::from_millis(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const YEAR: i64 = 365 * 24 * 3600;

    #[test]
    fn a_span_ends_when_it_has_passed() {
        let clock = HandClock::new();
        let deadline = Deadline::after(&clock.now(), 6 * HOUR);
        assert_eq!(deadline.remaining(&clock.now()), 6 * HOUR);
        clock.pass(5 * HOUR);
        assert!(!deadline.is_due(&clock.now()));
        clock.pass(HOUR);
        assert!(deadline.is_due(&clock.now()));
    }

    #[test]
    fn a_wall_clock_that_jumps_moves_no_span() {
        for jump in [YEAR, -YEAR, 3600, -3600] {
            let clock = HandClock::new();
            let deadline = Deadline::after(&clock.now(), 6 * HOUR);
            clock.set_wall(jump);
            assert_eq!(deadline.remaining(&clock.now()), 6 * HOUR, "{jump}");
        }
    }

    #[test]
    fn a_reboot_counts_by_the_wall_clock() {
        let clock = HandClock::new();
        let deadline = Deadline::after(&clock.now(), 6 * HOUR);
        clock.reboot(2 * HOUR);
        assert_eq!(deadline.remaining(&clock.now()), 4 * HOUR);
        clock.reboot(9 * HOUR);
        assert!(deadline.is_due(&clock.now()));
    }

    #[test]
    fn a_wall_clock_set_back_over_a_reboot_puts_nothing_off_for_longer_than_the_span() {
        let clock = HandClock::new();
        let deadline = Deadline::after(&clock.now(), 6 * HOUR);
        clock.set_wall(-YEAR);
        clock.reboot(HOUR);
        assert_eq!(deadline.remaining(&clock.now()), 6 * HOUR);
        let anchored = deadline.anchored(&clock.now());
        clock.set_wall(-YEAR);
        clock.pass(6 * HOUR);
        assert!(anchored.is_due(&clock.now()));
    }

    #[test]
    fn a_clock_that_is_lost_at_every_reboot_puts_a_noted_deadline_off_by_what_was_not_noted() {
        let clock = HandClock::new();
        let mut deadline = Deadline::after(&clock.now(), 6 * HOUR);
        for boot in 1..=6 {
            clock.pass(HOUR);
            deadline = deadline.noted(&clock.now());
            clock.set_wall(-YEAR);
            clock.reboot(Duration::from_secs(60));
            deadline = deadline.anchored(&clock.now());
            assert_eq!(deadline.remaining(&clock.now()), (6 - boot) * HOUR);
        }
    }

    #[test]
    fn what_counts_only_while_the_machine_is_on_is_not_hurried_by_a_wall_clock() {
        let clock = HandClock::new();
        let deadline = Deadline::after(&clock.now(), 6 * HOUR);
        clock.pass(HOUR);
        let deadline = deadline.noted(&clock.now());
        clock.set_wall(YEAR);
        clock.reboot(HOUR);
        let deadline = deadline.anchored_by_measure(&clock.now());
        assert_eq!(deadline.remaining(&clock.now()), 5 * HOUR);
    }

    #[test]
    fn a_laboratory_moves_its_clock_by_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let clock = TestClock::new(dir.path().join("clock"));
        let before = clock.now();
        let shift = r#"{"elapsed_seconds": 7200, "wall_jump_seconds": -3600, "reboots": 2}"#;
        fs::write(dir.path().join("clock"), shift).unwrap();
        let after = clock.now();
        assert!(after.since_boot >= before.since_boot + 2 * HOUR);
        let wall = after.wall.duration_since(before.wall).as_secs();
        assert!((3600..3700).contains(&wall), "{wall}");
        assert_ne!(after.boot, before.boot);
        fs::write(dir.path().join("clock"), "half a li").unwrap();
        assert!(
            clock.now().since_boot >= after.since_boot,
            "what it said before counts"
        );
    }
}
