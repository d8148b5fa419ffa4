//! Whether what waits for a target moves.

use std::time::{Duration, Instant};

/// Nothing moves for so long before somebody hears of it where there are data connections: a slow line is no reason to worry.
const SHOWN_AFTER: Duration = Duration::from_secs(30);

/// What a session has come to. Where any of it changes, it moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Signs {
    /// Number of the last message that the target has applied.
    pub received: u64,
    /// How often a data connection has waited for the limit of what is sent.
    pub limited: u64,
}

/// Watches a session whose control connection is there.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    signs: Signs,
    since: Option<Instant>,
}

impl Stall {
    /// Since when nothing moves. `waits` says whether clusters wait for the target to take them.
    pub(crate) fn look(&mut self, waits: bool, signs: Signs, now: Instant) -> Option<Instant> {
        if !waits {
            self.since = None;
        } else if self.signs != signs || self.since.is_none() {
            self.since = Some(now);
        }
        self.signs = signs;
        self.since
    }
}

/// What is said of a session where nothing moves since a moment; nothing yet where that is not worth a word. `lost` says why there is
/// no data connection, where there is none.
pub(crate) fn reason(stalled: Duration, lanes: u32, lost: Option<&str>) -> Option<String> {
    match (lanes, lost) {
        (0, Some(lost)) => Some(format!(
            "no data connection to the target can be made, and what waits cannot be sent: {lost}"
        )),
        _ if stalled > SHOWN_AFTER => {
            Some("the target answers, and has not taken what was sent for a while".to_owned())
        }
        _ => None,
    }
}

/// How long nothing may move before the target counts as lost: what the session has as its patience, or longer where the target still
/// has data connections.
pub(crate) fn patience(patience: Duration, lanes: u32) -> Duration {
    match lanes {
        0 => patience,
        _ => patience.max(2 * SHOWN_AFTER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_and_does_not_move_stands_still() {
        let (mut stall, begun) = (Stall::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        let signs = |received, limited| Signs { received, limited };
        assert_eq!(stall.look(false, signs(0, 0), after(0)), None, "nothing waits");
        assert_eq!(stall.look(true, signs(0, 0), after(1)), Some(after(1)));
        assert_eq!(stall.look(true, signs(0, 0), after(9)), Some(after(1)));
        assert_eq!(
            stall.look(true, signs(4, 0), after(10)),
            Some(after(10)),
            "it moved"
        );
        assert_eq!(
            stall.look(true, signs(4, 1), after(20)),
            Some(after(20)),
            "the limit is the reason"
        );
        assert_eq!(stall.look(false, signs(4, 1), after(30)), None);
        assert_eq!(stall.look(true, signs(4, 1), after(40)), Some(after(40)));
    }

    #[test]
    fn what_cannot_be_sent_is_said_sooner_than_what_is_slow() {
        let second = Duration::from_secs(1);
        assert!(reason(second, 0, Some("refused")).is_some_and(|said| said.contains("refused")));
        assert_eq!(reason(second, 0, None), None, "they are being made");
        assert_eq!(reason(second, 2, Some("refused")), None);
        assert!(reason(60 * second, 2, None).is_some());
        assert_eq!(patience(second, 0), second);
        assert_eq!(patience(second, 1), 60 * second);
        assert_eq!(patience(600 * second, 1), 600 * second);
    }
}
