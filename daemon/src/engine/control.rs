//! How a running sync is stopped and paced.

use blockio::{IoPriority, Pace};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a sync that was asked to stop still waits for another process that frees space in its chain, so that it can
/// write a checkpoint.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Held by the caller that started a sync, and by the sync.
#[derive(Debug)]
pub struct Control {
    stopped: AtomicBool,
    since: OnceLock<Instant>,
    pace: Arc<Pace>,
}

/// A sync that reads without limit and priority.
impl Default for Control {
    fn default() -> Self {
        Self::new(0, IoPriority::default())
    }
}

impl Control {
    /// A sync that reads no more than `bandwidth_limit` bytes a second (0 is no limit), with this priority.
    pub fn new(bandwidth_limit: u64, priority: IoPriority) -> Self {
        Self {
            stopped: AtomicBool::new(false),
            since: OnceLock::new(),
            pace: Arc::new(Pace::new(bandwidth_limit).with_priority(priority)),
        }
    }

    /// Asks the sync to stop and keep what it has stored. Returns whether it had been asked before.
    pub fn stop(&self) -> bool {
        self.since.get_or_init(Instant::now);
        self.stopped.swap(true, Ordering::SeqCst)
    }

    /// Whether the sync was asked to stop.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Whether the sync may wait for another process: not for long once it was asked to stop.
    pub fn may_wait(&self) -> bool {
        self.since
            .get()
            .is_none_or(|since| since.elapsed() < STOP_PATIENCE)
    }

    /// How fast the sync reads, all disks together, and with which priority.
    pub fn pace(&self) -> &Arc<Pace> {
        &self.pace
    }

    /// Set when the sync is to stop.
    pub(super) fn stop_flag(&self) -> &AtomicBool {
        &self.stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_stop_is_distinguished_from_the_first() {
        let control = Control::default();
        assert!(!control.is_stopped());
        assert!(control.may_wait());
        assert!(!control.stop());
        assert!(control.is_stopped() && control.stop_flag().load(Ordering::Relaxed));
        assert!(control.stop());
        assert!(control.may_wait(), "its last checkpoint is worth a moment");
    }
}
