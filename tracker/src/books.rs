//! Whether the programs saw everything: what they counted against what the kernel counted.

use std::time::{Duration, Instant};

use hostdev::{BlockDevice, Counters};

use crate::layout::{Books, COPIES, Stats};
use crate::shared::Shared;
use crate::target::Target;
use crate::{Distrust, Error, ErrorKind, Result};

/// How long a disk that is being written to is observed for a moment without.
const PATIENCE: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(1);

/// What was counted at one moment, or during a very short time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    before: Counted,
    after: Counted,
    kernel: Kernel,
}

/// In sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    queued: u64,
    completed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Kernel {
    sectors: u64,
    in_flight: u64,
}

impl Sample {
    /// What is queued and not completed, if that did not change meanwhile.
    fn standing(&self) -> Option<i64> {
        let still = self.before == self.after;
        still.then(|| difference(self.before.queued, self.before.completed))
    }

    /// Nothing is in flight, and nothing came or went meanwhile.
    fn quiet(&self) -> Option<i64> {
        self.standing().filter(|_| self.kernel.in_flight == 0)
    }
}

/// One disk's books.
#[derive(Debug)]
pub(crate) struct Ledger<'a> {
    shared: &'a Shared,
    slot: u32,
    disk: BlockDevice,
    is_bio_based: bool,
}

impl<'a> Ledger<'a> {
    pub(crate) fn of(shared: &'a Shared, slot: u32, target: &Target) -> Result<Ledger<'a>> {
        let disk = BlockDevice::find(&shared.root, target.disk)?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no device {}", target.disk)))?;
        Ok(Ledger {
            shared,
            slot,
            disk,
            is_bio_based: target.is_bio_based,
        })
    }

    fn sample(&self) -> Result<Sample> {
        Ok(Sample {
            before: self.counted()?,
            kernel: kernel(&self.disk.counters()?),
            after: self.counted()?,
        })
    }

    /// Bios are counted by whoever removes them from the table; requests by the first copy, which is complete if it
    /// was never skipped, and bios that never became one by the first copy for bios.
    fn counted(&self) -> Result<Counted> {
        let Stats { queued, completed } = self.shared.stats(self.slot)?;
        let sectors = completed.map(|count| count.sectors);
        Ok(Counted {
            queued,
            completed: match self.is_bio_based {
                true => sectors.into_iter().fold(0, u64::wrapping_add),
                false => sectors[0].wrapping_add(sectors[COPIES]),
            },
        })
    }

    /// The books from now on. `before` are older ones: their balance holds where the disk is never quiet.
    pub(crate) fn open(&self, before: Option<Books>) -> Result<Books> {
        let end = Instant::now() + PATIENCE;
        let mut ahead = i64::MIN;
        loop {
            let sample = self.sample()?;
            // What the kernel counts meanwhile makes this smaller, never larger.
            ahead = ahead.max(difference(sample.before.completed, sample.kernel.sectors));
            let quiet = sample.quiet();
            let known = quiet.or_else(|| {
                before
                    .filter(|books| books.is_balanced == 1)
                    .map(|books| books.balance)
            });
            if quiet.is_some() || Instant::now() >= end {
                return Ok(Books {
                    is_balanced: u64::from(known.is_some()),
                    balance: known.unwrap_or(0),
                    ahead,
                });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Whether nothing was lost since `books` were opened.
    pub(crate) fn check(&self, books: &Books) -> std::result::Result<(), Distrust> {
        let unreadable = |error: Error| Distrust::unreadable(&error);
        let counting = self
            .disk
            .is_counting()
            .map_err(|error| Distrust::unreadable(&error))?;
        // A driver that gets bios may count although its queue says that it does not: zram does.
        if counting == Some(false) && !self.is_bio_based {
            return Err(Distrust::NotCounting);
        }
        if books.is_balanced == 0 && self.is_bio_based {
            return Err(Distrust::NeverQuiet);
        }
        let end = Instant::now() + PATIENCE;
        let mut wrong = None;
        loop {
            let sample = self.sample().map_err(unreadable)?;
            self.compare(&sample, books)?;
            let standing = sample.standing().filter(|_| books.is_balanced == 1);
            if books.is_balanced == 0 || standing == Some(books.balance) {
                return Ok(());
            }
            wrong = sample.quiet().or(wrong);
            if Instant::now() >= end {
                // A disk that is never quiet cannot be balanced; then the comparison with the kernel has to do.
                return wrong.map_or(Ok(()), |found| Err(unbalanced(found, books.balance)));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What the kernel has counted, the programs have seen before.
    fn compare(&self, sample: &Sample, books: &Books) -> std::result::Result<(), Distrust> {
        let seen = if self.is_bio_based {
            sample.after.queued
        } else {
            sample.after.completed
        };
        let ahead = difference(seen, sample.kernel.sectors);
        if ahead < books.ahead {
            return Err(unbalanced(ahead, books.ahead));
        }
        Ok(())
    }

    /// Waits until every write that is in flight now has completed; whether that was seen.
    pub(crate) fn settle(&self, books: &Books, deadline: Duration) -> Result<bool> {
        let end = Instant::now() + deadline;
        loop {
            let sample = self.sample()?;
            let balanced = books.is_balanced == 1 && sample.standing() == Some(books.balance);
            if balanced || (books.is_balanced == 0 && sample.quiet().is_some()) {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn kernel(counters: &Counters) -> Kernel {
    let discarded = counters.discards.map_or(0, |discards| discards.sectors);
    Kernel {
        sectors: counters.written_sectors.wrapping_add(discarded),
        in_flight: counters.writes_in_flight,
    }
}

fn difference(left: u64, right: u64) -> i64 {
    left.wrapping_sub(right).cast_signed()
}

fn unbalanced(found: i64, expected: i64) -> Distrust {
    Distrust::Unbalanced {
        sectors: found.abs_diff(expected),
    }
}
