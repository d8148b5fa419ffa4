//! Whether the tracker has seen the writes that made clusters differ.

use std::time::Duration;
use tracker::{Bitmap, Settled};

/// How often a tracker is asked.
const STEP: Duration = Duration::from_millis(200);

/// How long writes in flight are waited for before the question stays open.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be thought of clusters that differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// All of them were written to meanwhile.
    All,
    /// Some were not: those that are left.
    NotAll,
    /// Why it cannot be told of those that are left.
    Unknown(String),
}

impl Seen {
    /// Takes the clusters out of a set that were written to, as `look` says, which waits so long for writes in flight. One was not written
    /// to if it is still left after all writes that were in flight have completed.
    pub fn judge(left: &mut Bitmap, mut look: impl FnMut(Duration) -> tracker::Result<Settled>) -> Self {
        let mut waited = Duration::ZERO;
        loop {
            let settled = match look(STEP) {
                Ok(settled) => settled,
                Err(error) => return Self::Unknown(error.full_message()),
            };
            left.remove(settled.written());
            if left.is_empty() {
                return Self::All;
            }
            if settled.is_settled() {
                return Self::NotAll;
            }
            waited += STEP;
            if waited >= PATIENCE {
                let seconds = waited.as_secs();
                return Self::Unknown(format!("writes to it did not pause for {seconds} s"));
            }
        }
    }
}
