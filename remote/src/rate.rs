//! How fast is sent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// A limit of bytes per second, that all connections of a session share and that may change meanwhile.
#[derive(Debug, Default)]
pub struct Rate {
    bytes_per_second: AtomicU64,
    /// When the next bytes may go.
    next: Mutex<Option<Instant>>,
}

/// What was saved while nothing was sent counts for so long.
const BURST: Duration = Duration::from_millis(50);

impl Rate {
    /// A limit in bytes per second; 0 for none.
    pub fn new(bytes_per_second: u64) -> Rate {
        let rate = Rate::default();
        rate.set(bytes_per_second);
        rate
    }

    /// Changes the limit. What waits already keeps its time: less than a second.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Waits until so many bytes may be sent.
    pub async fn take(&self, bytes: u64) {
        if let Some(due) = self.due(bytes, Instant::now()) {
            sleep_until(due).await;
        }
    }

    fn due(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return None;
        }
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let due = next.map_or(now, |next| next.max(earliest));
        let takes = Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX),
        );
        *next = Some(due + takes);
        (due > now).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn bytes_go_at_the_rate_and_without_one_at_once() {
        let (rate, start) = (Rate::new(1000), Instant::now());
        assert_eq!(rate.due(500, start), None);
        assert_eq!(rate.due(500, start), Some(start + Duration::from_millis(500)));
        let late = start + Duration::from_secs(10);
        assert_eq!(rate.due(100, late), None, "little was saved");
        assert!(rate.due(100, late).unwrap() > late);
        rate.set(0);
        assert_eq!(rate.due(1 << 40, late), None);
    }
}
