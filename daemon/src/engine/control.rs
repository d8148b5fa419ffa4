//! What can be said to a sync while it runs: stop, and how fast to read.

use blockio::Pace;
use changetrack::Progress;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Held by whoever started a sync, and by the sync.
#[derive(Debug)]
pub struct Control {
    stopped: AtomicBool,
    current: Mutex<Arc<Progress>>,
    pace: Arc<Pace>,
}

impl Control {
    /// A sync that reads no more than `bandwidth_limit` bytes a second; 0 is no limit.
    pub fn new(bandwidth_limit: u64) -> Self {
        Self {
            stopped: AtomicBool::new(false),
            current: Mutex::default(),
            pace: Arc::new(Pace::new(bandwidth_limit)),
        }
    }

    /// Asks the sync to stop and keep what it has stored. Says whether it had been asked before.
    pub fn stop(&self) -> bool {
        let before = self.stopped.swap(true, Ordering::SeqCst);
        self.lock().cancel.store(true, Ordering::Relaxed);
        before
    }

    /// Whether the sync was asked to stop.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// How fast the sync reads.
    pub fn pace(&self) -> &Arc<Pace> {
        &self.pace
    }

    /// The progress of the next disk, already canceled if the sync was asked to stop before.
    pub(super) fn next_disk(&self) -> Arc<Progress> {
        let progress = Arc::new(Progress::default());
        *self.lock() = progress.clone();
        // Looked at after the exchange: whoever stops between the two finds the new one.
        progress.cancel.store(self.is_stopped(), Ordering::Relaxed);
        progress
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Progress>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_reaches_the_disk_at_hand_and_all_that_follow() {
        let control = Control::new(0);
        let first = control.next_disk();
        assert!(!first.cancel.load(Ordering::Relaxed));
        assert!(!control.stop());
        assert!(first.cancel.load(Ordering::Relaxed));
        assert!(control.next_disk().cancel.load(Ordering::Relaxed));
        assert!(control.stop(), "the second stop is told from the first");
    }
}
