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

/// How long a disk with requests has to rest before more than the balance counts as missed. A request that waits for a soft interrupt
/// on a busy machine looks like a rest of up to 144 ms.
const TELLING_REST: Duration = Duration::from_millis(500);

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
    /// Those of `completed` that the kernel does not count: bios that never became a request.
    refused: u64,
}

impl Counted {
    /// What the kernel counts too.
    fn done(&self) -> u64 {
        self.completed.wrapping_sub(self.refused)
    }
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

    /// How far the programs are ahead of the kernel. It counts a little after them: while a write is between both, this is
    /// too high by it. What the kernel counts between the readings makes it too low, but for a moment that is standing.
    fn ahead(&self) -> i64 {
        difference(self.before.done(), self.kernel.sectors)
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
        self.lasts(sample, now).is_some_and(|lasts| lasts >= ON_THE_WAY)
    }

    /// How long it lasts already, if it does.
    fn lasts(&mut self, sample: &Sample, now: Instant) -> Option<Duration> {
        if sample.quiet().is_none() {
            self.begun = None;
            return None;
        }
        match self.begun {
            Some((counted, since)) if counted == sample.after => Some(now.duration_since(since)),
            _ => {
                self.begun = Some((sample.after, now));
                Some(Duration::ZERO)
            }
        }
    }
}

/// How far the programs are ahead of the kernel, as nearly as it was seen.
///
/// On a disk with requests, a standing moment can only be too high, so the lowest is the nearest. A disk with bios counts on
/// its own when a bio begins or a little before it ends, so what is in flight can make it too low; then the moment counts at which
/// least was in flight.
#[derive(Debug)]
struct Ahead {
    is_bio_based: bool,
    /// What is in flight, where that matters, and how far they are ahead.
    nearest: Option<(i64, i64)>,
    /// Where no moment is standing. A write between both counts makes it too high, so that the disk may be scanned
    /// needlessly; the lowest of these would let a write be missed.
    moving: i64,
}

impl Ahead {
    /// Older books that still hold say how far they were ahead, which does not change while all is seen and counted.
    fn new(is_bio_based: bool, before: Option<Books>) -> Ahead {
        let in_flight = |books: Books| if is_bio_based { books.balance } else { 0 };
        Ahead {
            is_bio_based,
            nearest: before.map(|books| (in_flight(books), books.ahead)),
            moving: i64::MIN,
        }
    }

    fn see(&mut self, sample: &Sample) {
        let ahead = sample.ahead();
        let seen = match self.is_bio_based {
            true => sample.quiet().map(|in_flight| (in_flight, ahead)),
            false => sample.standing().map(|_| (0, ahead)),
        };
        self.moving = self.moving.max(ahead);
        self.nearest = match (self.nearest, seen) {
            (Some(nearest), Some(seen)) => Some(nearest.min(seen)),
            (nearest, seen) => nearest.or(seen),
        };
    }

    /// Nothing can be on its way: this is it, also where the kernel did not count for a while.
    fn is_at_rest(&mut self, standing: i64, sample: &Sample) {
        self.nearest = Some((standing, sample.ahead()));
    }

    fn sectors(&self) -> i64 {
        self.nearest.map_or(self.moving, |(_, ahead)| ahead)
    }
}

/// Finds out what the books are from now on.
///
/// What is in flight can only add to what is queued and has not completed. So of all moments the lowest is the nearest to
/// the balance, and the balance itself is only seen at rest.
#[derive(Debug)]
struct Opening {
    before: Option<Books>,
    ahead: Ahead,
    lowest: Option<i64>,
    rest: Rest,
    is_known: bool,
}

impl Opening {
    fn new(is_bio_based: bool, before: Option<Books>) -> Opening {
        let before = before.filter(|books| books.certainty != UNKNOWN);
        Opening {
            before,
            ahead: Ahead::new(is_bio_based, before),
            lowest: None,
            rest: Rest::default(),
            is_known: false,
        }
    }

    /// Whether the balance is known now.
    fn see(&mut self, sample: &Sample, now: Instant) -> bool {
        self.ahead.see(sample);
        let is_long_quiet = self.rest.see(sample, now);
        if let Some(standing) = sample.quiet() {
            // What is more than older books allow has not completed, however long that takes: see `has_settled`.
            let is_at_rest = is_long_quiet && self.before.is_none_or(|books| standing <= books.balance);
            let was_known = self.before.is_some_and(|books| {
                books.certainty == KNOWN && books.balance == standing && books.ahead == sample.ahead()
            });
            if is_at_rest {
                self.ahead.is_at_rest(standing, sample);
            }
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
            ahead: self.ahead.sectors(),
        }
    }
}

/// Whether what is queued and has not completed speaks for the books. More than the balance has not ended, or its end was
/// missed. Less says that the balance was noted too high, while a write was on its way that neither a rest nor the kernel
/// shows; it never says that a write was missed, because what is counted as completed was marked.
fn holds(books: &Books, standing: i64) -> bool {
    standing <= books.balance
}

/// Whether nothing is in flight. A rest alone does not tell: the kernel counts neither a request that waits for a soft interrupt as in
/// flight, nor a discard of zram, and on a busy machine either may take long. What is more than the balance has not completed, or
/// its end was missed.
fn has_settled(books: &Books, sample: &Sample, is_at_rest: bool) -> bool {
    let Some(standing) = sample.standing() else {
        return false;
    };
    match books.certainty {
        KNOWN => standing == books.balance || (is_at_rest && standing < books.balance),
        AT_MOST => is_at_rest && standing <= books.balance,
        _ => is_at_rest,
    }
}

/// What the kernel has counted, the programs have seen before. A disk with bios may count them when they begin.
fn keeps_up(is_bio_based: bool, sample: &Sample, books: &Books) -> std::result::Result<(), Distrust> {
    let seen = match is_bio_based {
        true => sample.after.queued,
        false => sample.after.done(),
    };
    let ahead = difference(seen, sample.kernel.sectors);
    match ahead < books.ahead {
        true => Err(unbalanced(ahead, books.ahead)),
        false => Ok(()),
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

    /// Bios are counted by the program that removes them from the table; requests by the first copy, which is complete if it
    /// was never skipped, and bios that never became one by the first copy for bios.
    fn counted(&self) -> Result<Counted> {
        let Stats { queued, completed } = self.shared.stats(self.slot)?;
        let sectors = completed.map(|count| count.sectors);
        let (completed, refused) = match self.is_bio_based {
            true => (sectors.into_iter().fold(0, u64::wrapping_add), 0),
            false => (sectors[0].wrapping_add(sectors[COPIES]), sectors[COPIES]),
        };
        Ok(Counted {
            queued,
            completed,
            refused,
        })
    }

    /// The books from now on. `before` are older ones that still hold.
    pub(crate) fn open(&self, before: Option<Books>) -> Result<Books> {
        let end = Instant::now() + PATIENCE;
        let mut opening = Opening::new(self.is_bio_based, before);
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
        let (mut rest, mut is_doubted, mut wrong) = (Rest::default(), false, None);
        loop {
            let sample = self.sample().map_err(unreadable)?;
            keeps_up(self.is_bio_based, &sample, books)?;
            if books.certainty == UNKNOWN || sample.standing().is_some_and(|found| holds(books, found)) {
                return Ok(());
            }
            // A request that waits for a flush is not in flight for the kernel, so on a disk with requests only rest tells. What was
            // written there without being seen, the comparison with the kernel has found above.
            let rests = rest.lasts(&sample, Instant::now());
            let rests_for = |long: Duration| self.is_bio_based || rests.is_some_and(|lasts| lasts >= long);
            is_doubted |= sample.quiet().is_some() && rests_for(ON_THE_WAY);
            wrong = sample.quiet().filter(|_| rests_for(TELLING_REST)).or(wrong);
            let patience = if is_doubted { DOUBTED_PATIENCE } else { PATIENCE };
            if begun.elapsed() >= patience {
                // A disk that is never quiet cannot be balanced; then the comparison with the kernel has to do.
                return wrong.map_or(Ok(()), |found| Err(unbalanced(found, books.balance)));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until every write that is in flight now has completed; whether that was seen.
    pub(crate) fn settle(&self, books: &Books, deadline: Duration) -> Result<bool> {
        let end = Instant::now() + deadline;
        let mut rest = Rest::default();
        loop {
            let sample = self.sample()?;
            let is_at_rest = rest.see(&sample, Instant::now());
            if has_settled(books, &sample, is_at_rest) {
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
        counted(queued, completed, completed, in_flight)
    }

    /// As `sample`, with so many sectors that the kernel has counted.
    fn counted(queued: u64, completed: u64, sectors: u64, in_flight: u64) -> Sample {
        let counted = Counted {
            queued,
            completed,
            refused: 0,
        };
        Sample {
            before: counted,
            after: counted,
            kernel: Kernel { sectors, in_flight },
        }
    }

    /// The books after samples, a millisecond apart.
    fn opened_on(
        is_bio_based: bool,
        before: Option<Books>,
        samples: impl IntoIterator<Item = Sample>,
    ) -> Books {
        let start = Instant::now();
        let mut opening = Opening::new(is_bio_based, before);
        for (number, sample) in (0..).zip(samples) {
            if opening.see(&sample, start + PAUSE * number) {
                break;
            }
        }
        opening.books()
    }

    fn opened(before: Option<Books>, samples: impl IntoIterator<Item = Sample>) -> (u64, i64) {
        let books = opened_on(false, before, samples);
        (books.certainty, books.balance)
    }

    fn ahead(is_bio_based: bool, before: Option<Books>, samples: impl IntoIterator<Item = Sample>) -> i64 {
        opened_on(is_bio_based, before, samples).ahead
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
        for certainty in [KNOWN, AT_MOST] {
            let discarding = std::iter::repeat_n(sample(16, 8, 0), 60);
            assert_eq!(opened(Some(books(certainty, 0)), discarding), (certainty, 0));
        }
        let changing = (0..60).map(|number| sample(8 * number + 8, 8 * number, 0));
        assert_eq!(opened(None, changing), (AT_MOST, 8), "this is no rest");
    }

    #[test]
    fn a_write_that_never_completed_does_not_hold_whatever_was_known() {
        for certainty in [AT_MOST, KNOWN] {
            assert!(holds(&books(certainty, 8), 8));
            assert!(!holds(&books(certainty, 8), 16));
            assert!(holds(&books(certainty, 8), 0), "it was noted too high");
        }
    }

    #[test]
    fn a_write_between_both_counts_does_not_put_the_kernel_behind_for_ever() {
        // Not every kernel says that it is in flight until it is counted.
        for in_flight in [0, 1] {
            let between = counted(108, 108, 100, in_flight);
            assert_eq!(ahead(false, None, [between, sample(108, 108, 0)]), 0);
            assert_eq!(ahead(false, None, [sample(100, 100, 0), between]), 0);
            let writing = counted(116, 108, 108, 1);
            assert_eq!(ahead(false, None, [between, writing, between]), 0);
            let before = Some(books(KNOWN, 0));
            assert_eq!(ahead(false, before, [between]), 0, "it was known");
            assert_eq!(ahead(false, Some(books(AT_MOST, 8)), [between]), 0);
        }
    }

    #[test]
    fn a_disk_that_never_stands_is_compared_with_the_moment_of_least_progress() {
        let moving = |completed: u64, sectors: u64| {
            let mut sample = counted(completed + 8, completed, sectors, 1);
            sample.after.completed += 16;
            sample
        };
        assert_eq!(ahead(false, None, [moving(80, 96), moving(160, 168)]), -8);
        assert_eq!(ahead(false, None, [moving(80, 88), counted(88, 88, 88, 1)]), 0);
    }

    #[test]
    fn a_disk_with_bios_that_counts_before_the_programs_is_not_behind() {
        // Counted by the kernel, and its end not yet seen; then the same with another one on its way.
        let [early, late] = [counted(108, 100, 108, 0), counted(124, 108, 116, 0)];
        for samples in [
            vec![early, sample(108, 108, 0)],
            vec![sample(100, 100, 0), early],
            vec![late, sample(124, 116, 0)],
        ] {
            assert_eq!(opened_on(true, None, samples.clone()).certainty, AT_MOST);
            let least = samples.iter().filter_map(Sample::quiet).min();
            let found = opened_on(true, None, samples);
            assert_eq!(Some(found.balance), least);
            assert_eq!(found.ahead, 0);
        }
        // A multipath head counts behind the programs.
        let between = counted(108, 108, 100, 1);
        assert_eq!(ahead(true, None, [between, sample(108, 108, 0)]), 0);
        assert_eq!(ahead(true, Some(books(KNOWN, 0)), [early]), 0);
    }

    #[test]
    fn what_the_kernel_did_not_count_for_a_while_is_no_room_for_lost_writes() {
        let rest = std::iter::repeat_n(counted(900, 900, 100, 0), 60);
        let found = opened_on(false, Some(books(KNOWN, 0)), rest);
        assert_eq!((found.certainty, found.ahead), (KNOWN, 800));
    }

    #[test]
    fn what_the_kernel_counts_and_the_programs_do_not_see_is_found() {
        let books = opened_on(false, None, [counted(108, 108, 100, 1), sample(108, 108, 0)]);
        assert_eq!(keeps_up(false, &sample(200, 200, 0), &books), Ok(()));
        assert_eq!(keeps_up(false, &counted(200, 200, 192, 0), &books), Ok(()));
        let missed = Err(Distrust::Unbalanced { sectors: 8 });
        assert_eq!(keeps_up(false, &counted(200, 200, 208, 0), &books), missed);
        // Bios that never became requests were completed, and are nothing that the kernel counts.
        let mut refused = counted(264, 264, 208, 0);
        refused.after.refused = 64;
        assert_eq!(keeps_up(false, &refused, &books), missed);
        // What is queued counts on a disk with bios.
        assert_eq!(keeps_up(true, &counted(208, 200, 208, 1), &books), Ok(()));
        assert_eq!(keeps_up(true, &counted(200, 200, 208, 0), &books), missed);
    }

    #[test]
    fn a_write_that_the_kernel_does_not_count_as_in_flight_is_waited_for() {
        let discarding = sample(108, 100, 0);
        assert!(!has_settled(&books(KNOWN, 0), &discarding, true));
        assert!(!has_settled(&books(AT_MOST, 0), &discarding, true));
        assert!(
            has_settled(&books(UNKNOWN, 0), &discarding, true),
            "nothing else tells"
        );
        let done = sample(108, 108, 0);
        assert!(has_settled(&books(KNOWN, 0), &done, false));
        assert!(has_settled(&books(AT_MOST, 8), &done, true));
        assert!(!has_settled(&books(AT_MOST, 8), &done, false));
        assert!(has_settled(&books(KNOWN, 8), &done, true));
        assert!(!has_settled(&books(KNOWN, 8), &done, false));
        let mut moving = done;
        moving.after.queued += 8;
        assert!(!has_settled(&books(KNOWN, 0), &moving, true));
    }
}
