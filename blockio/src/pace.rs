//! How fast is read, and with which priority, for a source that has other things to do.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::IoPriority;

/// Bytes a second that readers may read together, and the I/O priority of their reads. Both can be changed while they read.
///
/// What was read is a debt that is paid off at the rate of the limit, and nothing new is read before it is. So a
/// changed limit counts at once, also for what was read before.
#[derive(Debug)]
pub struct Pace {
    /// 0 is no limit.
    limit: AtomicU64,
    debt: Mutex<Debt>,
    /// As the kernel numbers it.
    priority: AtomicU16,
}

#[derive(Debug)]
struct Debt {
    bytes: f64,
    since: Instant,
}

impl Pace {
    /// A limit of `bytes_per_second`; 0 is none.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            limit: AtomicU64::new(bytes_per_second),
            debt: Mutex::new(Debt {
                bytes: 0.0,
                since: Instant::now(),
            }),
            priority: AtomicU16::new(IoPriority::default().to_kernel()),
        }
    }

    /// The same limit, with an I/O priority.
    #[must_use]
    pub fn with_priority(self, priority: IoPriority) -> Self {
        self.set_priority(priority);
        self
    }

    /// The I/O priority of reads.
    pub fn priority(&self) -> IoPriority {
        IoPriority::from_kernel(self.priority.load(Ordering::Relaxed))
    }

    /// Sets another I/O priority, for reads that begin from now on.
    pub fn set_priority(&self, priority: IoPriority) {
        self.priority.store(priority.to_kernel(), Ordering::Relaxed);
    }

    /// Bytes a second; 0 is no limit.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets another limit, from now on.
    pub fn set_limit(&self, bytes_per_second: u64) {
        // What was read so far is paid off at the old rate up to now.
        self.settle(Instant::now());
        self.limit.store(bytes_per_second, Ordering::Relaxed);
    }

    /// How long to wait before the next read; `None` is not at all.
    pub(crate) fn delay(&self, now: Instant) -> Option<Duration> {
        let bytes = self.settle(now);
        let limit = self.limit();
        (limit > 0 && bytes > 0.0).then(|| Duration::from_secs_f64((bytes / rate(limit)).min(3600.0)))
    }

    /// Counts a read that begins.
    pub(crate) fn charge(&self, bytes: u32) {
        // Without a limit nobody settles, and nothing may be owed when there is one.
        if self.limit() > 0 {
            self.lock().bytes += f64::from(bytes);
        }
    }

    /// Pays off what the time since the last look allows, and returns what is left.
    fn settle(&self, now: Instant) -> f64 {
        let limit = self.limit();
        let mut debt = self.lock();
        let elapsed = now.saturating_duration_since(debt.since);
        debt.since = now.max(debt.since);
        debt.bytes = if limit == 0 {
            0.0
        } else {
            (debt.bytes - elapsed.as_secs_f64() * rate(limit)).max(0.0)
        };
        debt.bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Debt> {
        self.debt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In units of a KiB, which 32 bits hold for every disk there is.
fn rate(limit: u64) -> f64 {
    f64::from(u32::try_from(limit.div_ceil(1024)).unwrap_or(u32::MAX)) * 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    #[test]
    fn without_a_limit_nothing_waits() {
        let pace = Pace::new(0);
        pace.charge(MIB);
        assert_eq!(pace.delay(Instant::now()), None);
    }

    #[test]
    fn what_was_read_is_paid_off_at_the_limit() {
        let pace = Pace::new(u64::from(MIB));
        let begin = Instant::now();
        assert_eq!(pace.delay(begin), None);
        pace.charge(2 * MIB);
        let wait = pace.delay(begin).unwrap();
        assert!((wait.as_secs_f64() - 2.0).abs() < 0.01, "{wait:?}");
        let wait = pace.delay(begin + Duration::from_millis(1500)).unwrap();
        assert!((wait.as_secs_f64() - 0.5).abs() < 0.01, "{wait:?}");
        assert_eq!(pace.delay(begin + Duration::from_secs(3)), None);
    }

    #[test]
    fn time_in_which_nothing_was_read_is_not_saved_up() {
        let pace = Pace::new(u64::from(MIB));
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(pace.delay(later), None);
        pace.charge(MIB);
        assert!(pace.delay(later).unwrap() > Duration::from_millis(900));
    }

    #[test]
    fn another_limit_counts_at_once() {
        let pace = Pace::new(1024);
        let begin = Instant::now();
        pace.charge(MIB);
        assert!(pace.delay(begin).unwrap() > Duration::from_secs(1000));
        pace.set_limit(u64::from(MIB));
        assert!(pace.delay(Instant::now()).unwrap() <= Duration::from_secs(1));
        pace.set_limit(0);
        assert_eq!(pace.delay(Instant::now()), None);
    }
}
