//! The tracker as it was seen last.

use api::TrackerView;
use std::sync::{Mutex, PoisonError};

/// What is remembered of the tracker.
#[derive(Debug, Default)]
pub struct Seen {
    /// As it was when it was looked at last: for those who must not wait.
    view: Mutex<Option<TrackerView>>,
}

impl Seen {
    /// The tracker as it was when it was looked at last, a minute ago at most.
    pub fn last(&self) -> Option<TrackerView> {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        view.clone()
    }

    /// Keeps it as it is now.
    pub fn keep(&self, view: &TrackerView) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = Some(view.clone());
    }
}
