//! Whether the programs saw everything: what they counted against what the kernel counted.

use std::time::{Duration, Instant};

use hostdev::{BlockDevice, Counters};

use crate::layout::{AT_MOST, Books, COPIES, KNOWN, Stats, UNKNOWN};
use crate::shared::Shared;
use crate::target::Target;
use crate::{Distrust, Error, ErrorKind, Result};

/// How long a disk that is being written to is observed for a moment without.
const PATIENCE: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(1);

/// How long it is observed when something was wrong. On a disk that gets bios it may be a write on its way to the driver, which another one
/// follows at once: a task that has queued it waits for its processor on a machine under load.
const DOUBTED_PATIENCE: Duration = Duration::from_secs(1);

/// How long a write may be on its way to its driver: in a list of its task, or in a queue. The kernel does not count it as
/// in flight meanwhile.
pub(crate) const ON_THE_WAY: Duration = Duration::from_millis(50);

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

/// How long a disk has been seen with nothing in flight and nothing queued.
#[derive(Debug, Default)]
struct Rest {
    begun: Option<(Counted, Instant)>,
}

impl Rest {
    /// Whether it was long enough that no write can be on its way.
    fn see(&mut self, sample: &Sample, now: Instant) -> bool {
        if sample.quiet().is_none() {
            self.begun = None;
            return false;
        }
        match self.begun {
            Some((counted, since)) if counted == sample.after => now.duration_since(since) >= ON_THE_WAY,
            _ => {
                self.begun = Some((sample.after, now));
                false
            }
        }
    }
}

/// Finds out what the books are from now on.
///
/// What is in flight can only add to what is queued and has not completed. So of all moments the lowest is the nearest to
/// the balance, and the balance itself is only seen at rest.
#[derive(Debug)]
struct Opening {
    before: Option<Books>,
    ahead: i64,
    lowest: Option<i64>,
    rest: Rest,
    is_known: bool,
}

impl Opening {
    fn new(before: Option<Books>) -> Opening {
        Opening {
            before: before.filter(|books| books.certainty != UNKNOWN),
            ahead: i64::MIN,
            lowest: None,
            rest: Rest::default(),
            is_known: false,
        }
    }

    /// Whether the balance is known now.
    fn see(&mut self, sample: &Sample, now: Instant) -> bool {
        // What the kernel counts meanwhile makes this smaller, never larger.
        let ahead = difference(sample.before.completed, sample.kernel.sectors);
        self.ahead = self.ahead.max(ahead);
        let is_at_rest = self.rest.see(sample, now);
        if let Some(standing) = sample.quiet() {
            let was_known = self
                .before
                .is_some_and(|books| books.certainty == KNOWN && books.balance == standing);
            self.is_known = is_at_rest || was_known;
            self.lowest = Some(match self.is_known {
                true => standing,
                false => self.lowest.map_or(standing, |lowest| lowest.min(standing)),
            });
        }
        self.is_known
    }

    fn books(&self) -> Books {
        let (certainty, balance) = match (self.before, self.lowest) {
            (_, Some(lowest)) if self.is_known => (KNOWN, lowest),
            (Some(before), Some(lowest)) if lowest < before.balance => (AT_MOST, lowest),
            (Some(before), _) => (before.certainty, before.balance),
            (None, Some(lowest)) => (AT_MOST, lowest),
            (None, None) => (UNKNOWN, 0),
        };
        Books {
            certainty,
            balance,
            ahead: self.ahead,
        }
    }
}

/// Whether what is queued and has not completed speaks for the books. Less than a balance that may be too high says that
/// it was; it never says that a write was missed, because what is counted as completed was marked.
fn holds(books: &Books, standing: i64) -> bool {
    standing == books.balance || (books.certainty == AT_MOST && standing < books.balance)
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

    /// Bios are counted by the program that removes them from the table; requests by the first copy, which is complete if it
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

    /// The books from now on. `before` are older ones that still hold.
    pub(crate) fn open(&self, before: Option<Books>) -> Result<Books> {
        let end = Instant::now() + PATIENCE;
        let mut opening = Opening::new(before);
        loop {
            let now = Instant::now();
            let known = opening.see(&self.sample()?, now);
            if known || now >= end {
                return Ok(opening.books());
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
        if books.certainty == UNKNOWN && self.is_bio_based {
            return Err(Distrust::NeverQuiet);
        }
        let begun = Instant::now();
        let (mut rest, mut wrong) = (Rest::default(), None);
        loop {
            let sample = self.sample().map_err(unreadable)?;
            self.compare(&sample, books)?;
            if books.certainty == UNKNOWN || sample.standing().is_some_and(|found| holds(books, found)) {
                return Ok(());
            }
            // A request that waits for a flush is not in flight for the kernel, so on a disk with requests only rest tells. What was
            // written there without being seen, the comparison with the kernel has found above.
            let tells = rest.see(&sample, Instant::now()) || self.is_bio_based;
            wrong = sample.quiet().filter(|_| tells).or(wrong);
            let patience = if wrong.is_some() {
                DOUBTED_PATIENCE
            } else {
                PATIENCE
            };
            if begun.elapsed() >= patience {
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
        let mut rest = Rest::default();
        loop {
            let sample = self.sample()?;
            let balanced = books.certainty == KNOWN && sample.standing() == Some(books.balance);
            if balanced || rest.see(&sample, Instant::now()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// So many sectors queued and completed, and writes that the kernel counts as in flight.
    fn sample(queued: u64, completed: u64, in_flight: u64) -> Sample {
        let counted = Counted { queued, completed };
        Sample {
            before: counted,
            after: counted,
            kernel: Kernel {
                sectors: completed,
                in_flight,
            },
        }
    }

    /// The books after samples, a millisecond apart.
    fn opened(before: Option<Books>, samples: impl IntoIterator<Item = Sample>) -> (u64, i64) {
        let start = Instant::now();
        let mut opening = Opening::new(before);
        for (number, sample) in (0..).zip(samples) {
            if opening.see(&sample, start + PAUSE * number) {
                break;
            }
        }
        let books = opening.books();
        (books.certainty, books.balance)
    }

    fn books(certainty: u64, balance: i64) -> Books {
        Books {
            certainty,
            balance,
            ahead: 0,
        }
    }

    #[test]
    fn a_write_on_its_way_to_the_driver_is_not_part_of_the_balance() {
        let busy = [
            sample(8, 0, 0),
            sample(16, 8, 1),
            sample(24, 24, 0),
            sample(40, 24, 0),
        ];
        assert_eq!(opened(None, busy), (AT_MOST, 0));
        // Never without one: then what is known is too high, and says so.
        assert_eq!(opened(None, [sample(8, 0, 0), sample(16, 8, 0)]), (AT_MOST, 8));
        assert_eq!(opened(None, [sample(8, 0, 1)]), (UNKNOWN, 0));
        let rest = std::iter::repeat_n(sample(24, 8, 0), 60);
        let busy_first = std::iter::once(sample(8, 0, 0)).chain(rest);
        assert_eq!(opened(None, busy_first), (KNOWN, 16));
    }

    #[test]
    fn what_is_known_of_the_balance_is_kept_while_the_disk_is_busy() {
        let busy = [sample(16, 8, 0), sample(24, 8, 1)];
        assert_eq!(opened(Some(books(KNOWN, 0)), busy), (KNOWN, 0));
        assert_eq!(opened(Some(books(KNOWN, 8)), busy), (KNOWN, 8));
        assert_eq!(opened(Some(books(AT_MOST, 0)), busy), (AT_MOST, 0));
        assert_eq!(opened(Some(books(AT_MOST, 16)), busy), (AT_MOST, 8));
        assert_eq!(opened(Some(books(KNOWN, 16)), busy), (AT_MOST, 8));
        let changing = (0..60).map(|number| sample(8 * number + 8, 8 * number, 0));
        assert_eq!(opened(None, changing), (AT_MOST, 8), "this is no rest");
    }

    #[test]
    fn a_write_that_never_completed_does_not_hold_whatever_was_known() {
        for certainty in [AT_MOST, KNOWN] {
            assert!(holds(&books(certainty, 8), 8));
            assert!(!holds(&books(certainty, 8), 16));
        }
        assert!(holds(&books(AT_MOST, 8), 0));
        assert!(!holds(&books(KNOWN, 8), 0));
    }
}
