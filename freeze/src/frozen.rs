//! Filesystems that are frozen together, from the first FIFREEZE to the last FITHAW.

use crate::evidence::{Evidence, FreezeOutcome, OfFilesystem, ThawOutcome};
use crate::{Filesystem, OnDisks, Result, Watchdog, ioctl};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// All filesystems on some disks that can be frozen, frozen; thawed when dropped.
///
/// While it exists, do not log, allocate, write, or wait for a thread that does so: all of that may need a filesystem that is frozen.
#[derive(Debug)]
pub struct Frozen<'a> {
    watchdog: &'a mut Watchdog,
    filesystems: Vec<One<'a>>,
    begun: Instant,
    budget: Duration,
    freezing: Duration,
    held: Duration,
    is_over_budget: bool,
    is_thawed: bool,
    is_thawed_by_watchdog: bool,
}

#[derive(Debug)]
struct One<'a> {
    filesystem: &'a Filesystem,
    file: BorrowedFd<'a>,
    freeze: FreezeOutcome,
    thaw: ThawOutcome,
}

impl OnDisks {
    /// Freezes all filesystems that can be frozen, for at most `budget`: then the watchdog thaws them. The budget counts from before
    /// the first one is frozen, and a single one may take longer, because nothing interrupts it. Flush before.
    ///
    /// Where one cannot be frozen, or the budget is used up, all are thawed at once; see [`Frozen::is_holding`].
    ///
    /// # Errors
    /// `NoWatchdog` when it does not answer: nothing has been frozen.
    pub fn freeze<'a>(&'a self, watchdog: &'a mut Watchdog, budget: Duration) -> Result<Frozen<'a>> {
        let one = |filesystem: &'a Filesystem| {
            Some(One {
                filesystem,
                file: filesystem.to_freeze()?.as_fd(),
                freeze: FreezeOutcome::NotTried,
                thaw: ThawOutcome::NotFrozen,
            })
        };
        let filesystems = self.filesystems.iter().filter_map(one).collect();
        watchdog.arm(budget)?;
        let mut frozen = Frozen {
            watchdog,
            filesystems,
            begun: Instant::now(),
            budget,
            freezing: Duration::ZERO,
            held: Duration::ZERO,
            is_over_budget: false,
            is_thawed: false,
            is_thawed_by_watchdog: false,
        };
        if !frozen.freeze_all() {
            frozen.thaw_all();
        }
        Ok(frozen)
    }
}

impl Frozen<'_> {
    /// Whether they are frozen, as far as this process knows: not if one could not be frozen in time.
    pub fn is_holding(&self) -> bool {
        !self.is_thawed
    }

    /// When the budget is used up, and the watchdog thaws.
    pub fn deadline(&self) -> Instant {
        self.begun + self.budget
    }

    /// Thaws them, those last that were frozen first, and says what it was.
    pub fn thaw(mut self) -> Evidence {
        self.thaw_all();
        let of = |one: &One<'_>| OfFilesystem {
            mount_point: one.filesystem.mount_point.clone(),
            freeze: one.freeze,
            thaw: one.thaw,
        };
        Evidence {
            held: self.held,
            freezing: self.freezing,
            filesystems: self.filesystems.iter().map(of).collect(),
            is_over_budget: self.is_over_budget,
            is_thawed_by_watchdog: self.is_thawed_by_watchdog,
        }
    }

    /// Returns whether all are frozen, and in time.
    fn freeze_all(&mut self) -> bool {
        let mut is_frozen = true;
        for one in &mut self.filesystems {
            let before = self.begun.elapsed();
            self.is_over_budget = before >= self.budget;
            if self.is_over_budget {
                break;
            }
            one.freeze = match ioctl::freeze(one.file) {
                Ok(()) => FreezeOutcome::Frozen(self.begun.elapsed().saturating_sub(before)),
                Err(errno) => FreezeOutcome::Failed(errno),
            };
            is_frozen = matches!(one.freeze, FreezeOutcome::Frozen(_));
            if !is_frozen {
                break;
            }
        }
        self.freezing = self.begun.elapsed();
        self.is_over_budget |= self.freezing >= self.budget;
        is_frozen && !self.is_over_budget
    }

    fn thaw_all(&mut self) {
        if std::mem::replace(&mut self.is_thawed, true) {
            return;
        }
        let is_frozen = |one: &&One<'_>| matches!(one.freeze, FreezeOutcome::Frozen(_));
        let count = self.filesystems.iter().take_while(is_frozen).count();
        let frozen = &mut self.filesystems[..count];
        // A watchdog has at most so many filesystems.
        match self.watchdog.thaw(u8::try_from(count).unwrap_or(u8::MAX)) {
            Ok(thaws) => {
                self.is_thawed_by_watchdog = thaws.has_timed_out;
                for (one, error) in frozen.iter_mut().zip(thaws.errors) {
                    one.thaw = outcome(error.into());
                }
            }
            // It died, or hangs.
            Err(_) => {
                for one in frozen.iter_mut().rev() {
                    let thawed = ioctl::thaw(one.file);
                    one.thaw = outcome(thawed.map_or_else(|errno| errno as i32, |()| 0));
                }
            }
        }
        self.held = self.begun.elapsed();
    }
}

fn outcome(error: i32) -> ThawOutcome {
    match error {
        0 => ThawOutcome::Thawed,
        libc::EINVAL => ThawOutcome::ThawedBefore,
        error => ThawOutcome::Failed(Errno::from_raw(error)),
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.thaw_all();
    }
}
