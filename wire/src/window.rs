//! The source's side of the order.

use crate::error::{Error, Result};
use crate::frame::{COST_BYTES, Frame};
use crate::message::Message;
use std::collections::VecDeque;
use std::sync::Arc;

/// A numbered message as it is sent, held until the target has it.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Its number.
    pub seq: u64,
    /// The frame. Connections share it.
    pub bytes: Arc<[u8]>,
    /// Whether only the control connection may carry it: all but clusters.
    pub is_control: bool,
}

#[derive(Debug)]
struct Held {
    sent: Sent,
    /// The connection that it was given to; `None` while it waits for one.
    lane: Option<u32>,
}

/// Numbers what a source sends, and holds it until the target has applied it.
///
/// What was given to a connection that is lost waits for another one. So what is sent twice is never more than what may be under way: the
/// target's credit.
#[derive(Debug)]
pub struct Window {
    held: VecDeque<Held>,
    held_bytes: u64,
    credit_bytes: u64,
    /// Number of the first message that is held, or of the next one.
    first: u64,
    next: u64,
    received: u64,
    pushed_bytes: u64,
    again_bytes: u64,
}

impl Window {
    /// A window in which so many bytes may be under way.
    pub fn new(credit_bytes: u64) -> Window {
        Window {
            held: VecDeque::new(),
            held_bytes: 0,
            credit_bytes,
            first: 1,
            next: 1,
            received: 0,
            pushed_bytes: 0,
            again_bytes: 0,
        }
    }

    /// Whether another message may be added. One may always be when nothing is held, however little credit there is.
    pub fn has_room(&self) -> bool {
        self.held.is_empty() || self.held_bytes < self.credit_bytes
    }

    /// Changes how much may be under way.
    pub fn set_credit(&mut self, bytes: u64) {
        self.credit_bytes = bytes;
    }

    /// Numbers a message. Returns its number.
    ///
    /// # Errors
    /// `TooMuch` when it does not fit into a frame; it has no number then.
    pub fn push(&mut self, message: Message) -> Result<u64> {
        let (seq, is_control) = (self.next, !matches!(message, Message::Put(_)));
        let frame: Frame = message.into_frame(seq)?;
        let bytes: Arc<[u8]> = frame.encode().into();
        self.held_bytes += bytes.len() as u64 + COST_BYTES;
        self.pushed_bytes += bytes.len() as u64;
        self.next += 1;
        self.held.push_back(Held {
            sent: Sent {
                seq,
                bytes,
                is_control,
            },
            lane: None,
        });
        Ok(seq)
    }

    /// The next message for a connection (0 is the control connection), given to it. The control connection takes clusters only where
    /// `takes_clusters`.
    pub fn next_for(&mut self, lane: u32, takes_clusters: bool) -> Option<Sent> {
        let fits = |held: &&mut Held| {
            let is_control = held.sent.is_control;
            held.lane.is_none()
                && if is_control {
                    lane == 0
                } else {
                    lane != 0 || takes_clusters
                }
        };
        let held = self.held.iter_mut().find(fits)?;
        held.lane = Some(lane);
        Some(held.sent.clone())
    }

    /// The target has applied all messages up to this number.
    ///
    /// # Errors
    /// `Malformed` for a number that was not sent.
    pub fn received(&mut self, seq: u64) -> Result<()> {
        if seq >= self.next {
            return Err(Error::malformed(format!(
                "the target has applied message {seq}, of which {} were sent",
                self.next - 1
            )));
        }
        while self.first <= seq {
            if let Some(held) = self.held.pop_front() {
                self.held_bytes -= held.sent.bytes.len() as u64 + COST_BYTES;
            }
            self.first += 1;
        }
        self.received = self.received.max(seq);
        Ok(())
    }

    /// A connection is lost: what it had and the target has not said to have waits for another one.
    pub fn lost(&mut self, lane: u32) {
        for held in self.held.iter_mut().filter(|held| held.lane == Some(lane)) {
            held.lane = None;
            self.again_bytes += held.sent.bytes.len() as u64;
        }
    }

    /// Number of the last message that the target has applied.
    pub fn received_seq(&self) -> u64 {
        self.received
    }

    /// Number of the last message.
    pub fn last_seq(&self) -> u64 {
        self.next - 1
    }

    /// Whether clusters are held: data connections are of use.
    pub fn has_clusters(&self) -> bool {
        self.held.iter().any(|held| !held.sent.is_control)
    }

    /// Bytes of all messages.
    pub fn pushed_bytes(&self) -> u64 {
        self.pushed_bytes
    }

    /// What is held counts so many bytes of the credit.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Bytes that were given to a connection which was lost, in all: the most that was sent twice.
    pub fn again_bytes(&self) -> u64 {
        self.again_bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::message::{EndPass, Nothing};
    use crate::{Piece, PutBuilder};

    fn put(cluster: u64) -> Message {
        let mut builder = PutBuilder::default();
        let piece = Piece {
            cluster,
            codec: 1,
            digest: [1; 32],
            stored: &[0; 1000],
        };
        builder.push(0, &piece);
        Message::Put(builder.take().unwrap().unwrap())
    }

    fn numbers(window: &mut Window, lane: u32, takes_clusters: bool) -> Vec<u64> {
        std::iter::from_fn(|| window.next_for(lane, takes_clusters))
            .map(|sent| sent.seq)
            .collect()
    }

    #[test]
    fn what_is_lost_is_sent_again_and_nothing_else() {
        let mut window = Window::new(3400);
        window.push(Message::Checkpoint(Nothing {})).unwrap();
        for cluster in 0..2 {
            assert!(window.has_room());
            window.push(put(cluster)).unwrap();
        }
        assert!(window.has_room());
        window.push(put(2)).unwrap();
        assert!(!window.has_room());
        assert_eq!(window.next_for(1, true).unwrap().seq, 2);
        assert_eq!(numbers(&mut window, 0, false), [1]);
        assert_eq!(numbers(&mut window, 2, true), [3, 4]);
        window.lost(2);
        assert_eq!(numbers(&mut window, 3, true), [3, 4]);
        window.received(3).unwrap();
        assert!(window.has_room());
        window.lost(1);
        window.lost(3);
        assert_eq!(numbers(&mut window, 0, true), [4]);
        assert_eq!((window.received_seq(), window.last_seq()), (3, 4));
        window.received(2).unwrap();
        assert_eq!(window.received_seq(), 3, "an answer that came late");
        assert!(window.received(5).is_err());
        window.received(4).unwrap();
        assert_eq!(window.held_bytes(), 0);
    }

    #[test]
    fn only_the_control_connection_carries_what_is_no_cluster() {
        let mut window = Window::new(1 << 20);
        let end = EndPass {
            disk: 0,
            compared_bytes: 1,
        };
        window.push(put(0)).unwrap();
        window.push(Message::EndPass(end)).unwrap();
        assert_eq!(numbers(&mut window, 0, false), [2]);
        assert_eq!(numbers(&mut window, 1, true), [1]);
    }

    #[test]
    fn a_message_always_fits_when_nothing_is_under_way() {
        let mut window = Window::new(0);
        assert!(window.has_room());
        window.push(put(0)).unwrap();
        assert!(!window.has_room());
        window.set_credit(1 << 20);
        assert!(window.has_room());
    }
}
