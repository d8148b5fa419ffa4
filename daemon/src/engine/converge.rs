//! Convergence: passes over what was written meanwhile, each shorter than the one before, until what is left can be read while
//! writers are held.

use super::error::Error;
use super::flush;
use super::held::{AHEAD_BYTES, Held};
use super::passes::{Reading, milliseconds};
use super::request::Observer;
use cli::units::size;
use freeze::OnDisks;
use imagefmt::PassRecord;
use std::time::Duration;

/// Passes after the first one.
pub(super) const PASSES_MAX: usize = 10;

/// The same behind the hooks that run before a freeze: what they write has to be little.
pub(super) const PASSES_AFTER_HOOKS: usize = 3;

/// Passes in a row that shrink too little.
const SLOW_MAX: usize = 2;

/// Why a step ends the way to one instant.
#[derive(Debug)]
pub(super) enum Ended {
    /// There will be none, and the sync goes on: why, as a clause.
    Missed(String),
    /// The sync has failed.
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What there is to be read after a flush, and how long writers would be held for it.
#[derive(Debug, Clone, Copy)]
struct Left {
    flush: Duration,
    bytes: u64,
    predicted: Duration,
}

impl Left {
    fn fits(&self, budget: Duration) -> bool {
        self.predicted <= budget && self.bytes <= AHEAD_BYTES
    }

    fn too_much(&self, passes: usize, budget: Duration) -> Ended {
        Ended::Missed(format!(
            "nothing was frozen: after {passes} passes, {} were still to be read that had been written meanwhile, and writers \
             would have been held for about {} (at most {} is allowed)",
            size(self.bytes),
            shown(self.predicted),
            shown(budget)
        ))
    }
}

/// A time as people read it: rounded up, as everywhere where it is said for how long writers were held.
pub(super) fn shown(time: Duration) -> String {
    format!("{} ms", time.as_micros().div_ceil(1000))
}

/// Notices when passes do not become shorter.
#[derive(Debug, Default)]
struct Shrinking {
    before: Option<u64>,
    slow: usize,
}

impl Shrinking {
    /// Whether passes still become shorter, with one of so many bytes.
    fn goes_on(&mut self, bytes: u64) -> bool {
        let is_slow = self
            .before
            .replace(bytes)
            .is_some_and(|before| bytes > before / 10 * 9);
        self.slow = if is_slow { self.slow + 1 } else { 0 };
        self.slow < SLOW_MAX
    }
}

impl<O: Observer> Reading<'_, '_, O> {
    /// Makes at most `most` passes until what is left can be read within the budget. What was taken last is then still to be read.
    ///
    /// # Errors
    /// Missed when it does not come to that.
    pub(super) fn converge(
        &mut self,
        found: &OnDisks,
        budget: Duration,
        held: &mut Held,
        passes: &mut Vec<PassRecord>,
        most: usize,
    ) -> std::result::Result<(), Ended> {
        let mut shrinking = Shrinking::default();
        for made in 0.. {
            let left = self.flush_and_take(found, held)?;
            if left.fits(budget) {
                break;
            }
            if made == most || !shrinking.goes_on(left.bytes) {
                return Err(left.too_much(passes.len(), budget));
            }
            passes.push(self.copy(left, held)?);
        }
        Ok(())
    }

    /// Has the kernel write what it holds back, and takes what was written since the last time.
    fn flush_and_take(&mut self, found: &OnDisks, held: &mut Held) -> std::result::Result<Left, Ended> {
        let cluster_time = held.read_time(self.job.disks).map_err(|error| {
            Ended::Missed(format!("nothing was frozen: a disk could not be read: {error}"))
        })?;
        let flushed = found.flush();
        if let Some(held_back) = flush::held_back(found, &flushed) {
            return Err(Ended::Missed(format!(
                "nothing was frozen, because not all could be flushed: {held_back}"
            )));
        }
        for (disk, tracking) in held.disks.iter_mut().zip(self.all_watching()?) {
            tracking.take_into(&mut disk.taken);
        }
        let clusters = held.left_clusters();
        let bytes = clusters * u64::from(self.image.cluster_size().bytes());
        let reading = cluster_time.saturating_mul(u32::try_from(clusters).unwrap_or(u32::MAX));
        Ok(Left {
            flush: flushed.took,
            bytes,
            predicted: flushed.took.saturating_add(reading),
        })
    }

    /// A pass over what was taken.
    fn copy(&mut self, left: Left, held: &mut Held) -> std::result::Result<PassRecord, Ended> {
        let before = (self.planned_bytes, self.dirty_bytes);
        let plans = held.plans();
        for (disk, tracking) in held.disks.iter().zip(self.all_watching()?) {
            tracking.has_read(&disk.taken);
        }
        held.clear();
        self.pass(&plans)?;
        Ok(PassRecord {
            bytes: self.planned_bytes - before.0,
            dirty_bytes: self.dirty_bytes - before.1,
            flush_ms: milliseconds(left.flush),
        })
    }

    /// The trackings of all disks.
    pub(super) fn all_watching(&mut self) -> std::result::Result<Vec<&mut tracker::Tracking>, Ended> {
        let all = self.trackings.all_watching();
        all.ok_or_else(|| Ended::Missed("nothing was frozen: a disk is no longer watched".to_owned()))
    }
}
