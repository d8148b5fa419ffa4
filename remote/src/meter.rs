//! How far sessions have come, for those who watch them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what the sessions of one sync send. They only add, so that it goes on counting when one session follows another.
#[derive(Debug, Default)]
pub struct Meter {
    sent: AtomicU64,
    again: AtomicU64,
    durable: AtomicU64,
}

impl Meter {
    /// Bytes that were sent, those too that were sent again.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that were given to a connection which was lost: the most that was sent twice.
    pub fn again_bytes(&self) -> u64 {
        self.again.load(Ordering::Relaxed)
    }

    /// Bytes, each counted once, that survive a power cut of the target.
    pub fn durable_bytes(&self) -> u64 {
        self.durable.load(Ordering::Relaxed)
    }

    pub(crate) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_again(&self, bytes: u64) {
        self.again.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_durable(&self, bytes: u64) {
        self.durable.fetch_add(bytes, Ordering::Relaxed);
    }
}
